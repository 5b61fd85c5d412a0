"""Does the maximum over the tokens of a phrase beat the mean? Baseline: tiny/frozen_tiny_llava_refcoco_png."""

from mmengine.config import read_base

with read_base():
    from ..tiny.frozen_tiny_llava_refcoco_png import *

model.update(lmm=dict(rows=dict(merge="max")))
