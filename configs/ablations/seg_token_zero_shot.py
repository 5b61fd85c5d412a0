"""What of reasoning comes from classes and referring expressions alone? No query is learned. Baseline: tiny/seg_token."""

from mmengine.config import read_base

with read_base():
    from ..tiny.seg_token import *

train_dataloader["dataset"]["datasets"] = dict(classes=classes_train, refer=refer_train, vqa=vqa_train)
train_dataloader["dataset"]["ratios"] = dict(classes=1, refer=3, vqa=1)
