"""Can the LMM also write its boxes in words, and what does it cost the others? Baseline: tiny/detseg_joint."""

from mmengine.config import read_base

with read_base():
    from ..tiny.detseg_joint import *

from flmm_detseg.datasets import JointDataset

train_dataloader.update(
    dataset=dict(
        datasets=dict(joint=dict(type=JointDataset, dataset=detection_train, sections=("detections",))),
        ratios=dict(joint=3),
    )
)
