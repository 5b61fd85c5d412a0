"""Are the best 128 of 1024 heads enough? Baseline: llava/frozen_llava15_7b_refcoco_png.

flmm-detseg rank-heads llava/frozen_llava15_7b_refcoco_png --out data/models/llava15_7b_heads.json
"""

from mmengine.config import read_base

with read_base():
    from ..llava.frozen_llava15_7b_refcoco_png import *

model.update(lmm=dict(rows=dict(heads="top:128", ranking="data/models/llava15_7b_heads.json")))
