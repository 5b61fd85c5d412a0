"""Does distillation to the LMM as it was keep more of the answers? Baseline: tiny/detseg_joint."""

from mmengine.config import read_base

with read_base():
    from ..tiny.detseg_joint import *

model.update(heads=dict(language=dict(distill_weight=1.0)))
