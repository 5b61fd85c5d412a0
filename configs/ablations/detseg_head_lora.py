"""Does low rank suffice for the decoder of stage 1 too? Baseline: tiny/detseg_joint."""

from mmengine.config import read_base

with read_base():
    from ..tiny.detseg_joint import *

model.update(head_lora=dict(segmentation=dict(r=4, alpha=8)))
