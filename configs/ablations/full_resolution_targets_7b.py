"""Do targets at full resolution beat targets at processor size? Baseline: llava/frozen_llava15_7b_refcoco_png."""

from mmengine.config import read_base

with read_base():
    from ..llava.frozen_llava15_7b_refcoco_png import *

model["heads"]["phrase"].update(target_resolution="full")
