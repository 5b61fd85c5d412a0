"""Whole tables trained as LISA does, or the rows of `[SEG]` alone? Baseline: tiny/seg_token.

Plain questions are then those of a changed LMM: `retention` can be no other than "always".
"""

from mmengine.config import read_base

with read_base():
    from ..tiny.seg_token import *

model["lmm"].update(added_tokens=dict(tokens=["[SEG]"], train="tables"))
model.update(retention="always")
