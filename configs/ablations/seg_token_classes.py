"""What do the classes of label maps give beside expressions and queries? Baseline: tiny/seg_token."""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.tinyworld_reason import classes_train
    from ..tiny.seg_token import *

train_dataloader["dataset"].update(
    datasets=[reason_train, refer_train, vqa_train, classes_train], weights=[6, 3, 1, 1]
)
