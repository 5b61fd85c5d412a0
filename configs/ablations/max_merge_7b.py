"""Does the maximum over the tokens of a phrase beat the mean? Baseline: llava/frozen_llava15_7b_refcoco_png."""

from mmengine.config import read_base

with read_base():
    from ..llava.frozen_llava15_7b_refcoco_png import *

model.update(lmm=dict(rows=dict(merge="max")))
