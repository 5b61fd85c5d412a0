"""One task a batch, or all tasks in every batch? Baseline: tiny/detseg_joint."""

from mmengine.config import read_base

with read_base():
    from ..tiny.detseg_joint import *

train_dataloader.update(sampler=dict(mode="mixed"))
