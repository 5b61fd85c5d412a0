"""Do a quarter of the ranks suffice? Baseline: tiny/detseg_joint."""

from mmengine.config import read_base

with read_base():
    from ..tiny.detseg_joint import *

model.update(
    lmm=dict(lora=dict(vision=dict(r=2, alpha=8), llm=dict(r=4, alpha=16), projector=dict(r=2, alpha=8)))
)
