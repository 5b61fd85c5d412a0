"""Stage 1 of LLaVA-Det-Seg on LLaVA-1.5-7B: the segmentation head alone, on the frozen LMM."""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.coco_ade_vqa import segmentation_train, semseg_eval
    from .._base_.datasets.ade_val import *
    from .._base_.models.coco_ade_heads import segmentation
    from .._base_.recipes.one_head_7b import *

model.update(heads=dict(segmentation=segmentation))
train_dataloader.update(dataset=segmentation_train)
param_scheduler[1].update(end=20000)
train_cfg.update(max_iters=20000)
