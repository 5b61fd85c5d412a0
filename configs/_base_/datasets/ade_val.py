"""Validation while training: mIoU of the segmentation head on ADE20K's validation set (`semseg/mIoU`)."""

from mmengine.config import read_base

with read_base():
    from .coco_ade_vqa import semseg_eval
    from .coco_val import val_cfg, val_dataloader

from flmm_detseg.evaluation import SemSegMetric

val_dataloader["dataset"] = semseg_eval["semseg_val"]
val_evaluator = dict(type=SemSegMetric)
