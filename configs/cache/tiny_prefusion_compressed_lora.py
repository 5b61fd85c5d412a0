"""Step 5 on step 4: LoRA after question fusion and compressed backgrounds."""

from mmengine.config import read_base

with read_base():
    from .tiny_prefusion_lora import *

model.update(lmm=dict(prefusion=dict(compressed_side=3)))
