"""Are the box and text prompts of SAM needed beside the mask prompt? Baseline: llava/frozen_llava15_7b_refcoco_png."""

from mmengine.config import read_base

with read_base():
    from ..llava.frozen_llava15_7b_refcoco_png import *

model["heads"]["phrase"]["sam"].update(use_text=False, use_box=False)
