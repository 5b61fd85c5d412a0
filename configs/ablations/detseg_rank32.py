"""Do four times the ranks help? Baseline: tiny/detseg_joint."""

from mmengine.config import read_base

with read_base():
    from ..tiny.detseg_joint import *

model.update(
    lmm=dict(
        lora=dict(vision=dict(r=32, alpha=128), llm=dict(r=64, alpha=256), projector=dict(r=32, alpha=128))
    )
)
