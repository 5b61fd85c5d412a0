"""Stage 1 of LLaVA-Det-Seg on LLaVA-1.5-7B: the detection head alone, on the frozen LMM."""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.coco_ade_vqa import coco_eval, detection_train
    from .._base_.datasets.coco_val import *
    from .._base_.models.coco_ade_heads import detection
    from .._base_.recipes.one_head_7b import *

model.update(heads=dict(detection=detection))
train_dataloader.update(dataset=detection_train)
param_scheduler[1].update(end=30000)
train_cfg.update(max_iters=30000)
