"""Stage 1 of LLaVA-Det-Seg on TinyWorld: the segmentation head alone, on the frozen tiny LLaVA."""

from mmengine.config import read_base

with read_base():
    from .._base_.models.tiny_detseg_heads import segmentation
    from .._base_.recipes.tiny_one_head import *

model.update(heads=dict(segmentation=segmentation))
train_dataloader.update(dataset=segmentation_train)
