"""Validation while training: COCO's AP of the detection head on val2017 (`coco/AP`)."""

from mmengine.config import read_base
from mmengine.dataset import DefaultSampler
from mmengine.runner import ValLoop

with read_base():
    from .coco_ade_vqa import coco_eval

from flmm_detseg.datasets import collate_samples
from flmm_detseg.evaluation import COCOBoxMetric

val_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type=DefaultSampler, shuffle=False),
    collate_fn=dict(type=collate_samples),
    dataset=coco_eval["coco_val"],
)
val_evaluator = dict(type=COCOBoxMetric)
val_cfg = dict(type=ValLoop)
