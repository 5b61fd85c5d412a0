"""Step 4, other variant: 3 x 3 tokens stand for a background in the language model, the question is fused."""

from mmengine.config import read_base

with read_base():
    from .tiny_prefusion import *

model.update(lmm=dict(prefusion=dict(compressed_side=3)))
