"""Are the best 16 of 32 heads enough? Baseline: tiny/frozen_tiny_llava_refcoco_png."""

from mmengine.config import read_base

with read_base():
    from ..tiny.frozen_tiny_llava_refcoco_png import *

model.update(lmm=dict(rows=dict(heads="top:16", ranking="data/models/tiny_llava/head_ranking.json")))
