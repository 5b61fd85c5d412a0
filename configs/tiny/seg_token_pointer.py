"""Answers with masks without a SAM: each `[SEG]` points at features of the tiny LLaVA's own tower."""

from mmengine.config import read_base

with read_base():
    from .._base_.models.tiny_seg_heads import answer_presence, pointer
    from .seg_token import *

model["heads"]["reasoning"] = dict(pointer, presence=answer_presence)
optim_wrapper["optimizer"]["groups"].pop("sam.")
