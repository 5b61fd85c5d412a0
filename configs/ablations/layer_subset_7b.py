"""Is the upper half of the layers enough? Baseline: llava/frozen_llava15_7b_refcoco_png."""

from mmengine.config import read_base

with read_base():
    from ..llava.frozen_llava15_7b_refcoco_png import *

model.update(lmm=dict(rows=dict(layers=[16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31])))
