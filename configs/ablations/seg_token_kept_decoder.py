"""Does SAM's mask decoder have to be trained? Baseline: tiny/seg_token."""

from mmengine.config import read_base

with read_base():
    from ..tiny.seg_token import *

model["heads"]["reasoning"].update(train_decoder=False)
optim_wrapper["optimizer"]["groups"].pop("sam.")
