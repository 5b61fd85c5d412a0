"""Are the box and text prompts of SAM needed beside the mask prompt? Baseline: tiny/frozen_tiny_llava_refcoco_png."""

from mmengine.config import read_base

with read_base():
    from ..tiny.frozen_tiny_llava_refcoco_png import *

model["heads"]["phrase"]["sam"].update(use_text=False, use_box=False)
