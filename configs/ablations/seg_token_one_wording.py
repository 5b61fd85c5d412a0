"""Each query in all its known wordings, or always in one? Baseline: tiny/seg_token."""

from mmengine.config import read_base

with read_base():
    from ..tiny.seg_token import *

train_dataloader["dataset"]["datasets"][0].update(queries="first")
