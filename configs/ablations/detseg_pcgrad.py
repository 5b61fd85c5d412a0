"""Do projected gradients beat their sum? (All tasks in every batch: it compares their gradients.) Baseline: detseg_mixed."""

from mmengine.config import read_base

with read_base():
    from ..tiny.detseg_joint import *

model.update(balancer=dict(gradients="pcgrad"))
train_dataloader.update(sampler=dict(mode="mixed"))
