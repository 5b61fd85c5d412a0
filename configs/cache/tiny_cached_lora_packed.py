"""Step 5, LoRA, with positions 0, 1, 2, ... instead of each patch's own."""

from mmengine.config import read_base

with read_base():
    from .tiny_cached_lora import *

model.update(lmm=dict(positions="packed"))
