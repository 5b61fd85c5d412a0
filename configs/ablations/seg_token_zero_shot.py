"""What of reasoning comes from classes and referring expressions alone? No query is learned. Baseline: tiny/seg_token.

Its presence head is calibrated on the validation queries all the same.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.tinyworld_reason import classes_train
    from ..tiny.seg_token import *

train_dataloader["dataset"].update(datasets=[classes_train, refer_train, vqa_train], weights=[1, 3, 1])
