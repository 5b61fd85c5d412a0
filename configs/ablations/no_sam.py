"""How much does SAM add? Coarse masks only. Baseline: tiny/frozen_tiny_llava_refcoco_png."""

from mmengine.config import read_base

with read_base():
    from ..tiny.frozen_tiny_llava_refcoco_png import *

model["heads"]["phrase"].update(sam=None)
