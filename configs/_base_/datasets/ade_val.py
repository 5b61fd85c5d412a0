"""Validation while training: mIoU of the segmentation head on ADE20K's validation set (`semseg/mIoU`)."""

from mmengine.config import read_base
from mmengine.dataset import DefaultSampler
from mmengine.runner import ValLoop

with read_base():
    from .coco_ade_vqa import semseg_eval

from flmm_detseg.datasets import collate_samples
from flmm_detseg.evaluation import SemSegMetric

val_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type=DefaultSampler, shuffle=False),
    collate_fn=dict(type=collate_samples),
    dataset=semseg_eval["semseg_val"],
)
val_evaluator = dict(type=SemSegMetric)
val_cfg = dict(type=ValLoop)
