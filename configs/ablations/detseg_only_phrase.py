"""What do referring masks reach when all iterations and LoRA are theirs? Baseline: tiny/detseg_joint."""

from mmengine.config import read_base

with read_base():
    from ..tiny.detseg_joint import *

from flmm_detseg.datasets import MultiTaskMix

model.update(instance_masks=False)
model["heads"] = dict(phrase=phrase_grounding)
train_dataloader["dataset"] = dict(
    type=MultiTaskMix,
    datasets=dict(phrase=train_dataloader["dataset"]["datasets"]["phrase"]),
    ratios=dict(phrase=1),
)
