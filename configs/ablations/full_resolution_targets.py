"""Do targets at full resolution beat targets at processor size? Baseline: tiny/frozen_tiny_llava_refcoco_png."""

from mmengine.config import read_base

with read_base():
    from ..tiny.frozen_tiny_llava_refcoco_png import *

model["heads"]["phrase"].update(target_resolution="full")
