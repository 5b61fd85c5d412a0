"""Does GradNorm beat fixed weights? (All tasks in every batch: it compares their gradients.) Baseline: detseg_mixed."""

from mmengine.config import read_base

with read_base():
    from ..tiny.detseg_joint import *

from flmm_detseg.models import GradNormWeighting

model.update(balancer=dict(weighting=dict(type=GradNormWeighting)))
train_dataloader.update(sampler=dict(mode="mixed"))
