"""Stage 1 of LLaVA-Det-Seg on TinyWorld: the detection head alone, on the frozen tiny LLaVA."""

from mmengine.config import read_base

with read_base():
    from .._base_.models.tiny_detseg_heads import detection
    from .._base_.recipes.tiny_one_head import *

model.update(heads=dict(detection=detection))
train_dataloader.update(dataset=detection_train)
