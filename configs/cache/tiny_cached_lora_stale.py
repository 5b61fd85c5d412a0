"""Step 5 for level L3: in training up to 5 % of a background's patches are changed, and repeated as objects."""

from mmengine.config import read_base

with read_base():
    from .tiny_cached_lora import *

model.update(lmm=dict(stale_share=(0.0, 0.05)))
