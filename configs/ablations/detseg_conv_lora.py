"""Does Conv-LoRA in the tower beat LoRA? Baseline: tiny/detseg_joint."""

from mmengine.config import read_base

with read_base():
    from ..tiny.detseg_joint import *

model.update(lmm=dict(lora=dict(vision=dict(kind="conv_lora"))))
