"""What do the classes of label maps give? Without them. Baseline: tiny/seg_token."""

from mmengine.config import read_base

with read_base():
    from ..tiny.seg_token import *

train_dataloader["dataset"]["datasets"] = dict(refer=refer_train, vqa=vqa_train, reason=reason_train)
train_dataloader["dataset"]["ratios"] = dict(refer=3, vqa=1, reason=6)
