"""The state of `[SEG]` itself, or the one that predicts it? Baseline: tiny/seg_token."""

from mmengine.config import read_base

with read_base():
    from ..tiny.seg_token import *

model["heads"]["reasoning"].update(position="at")
