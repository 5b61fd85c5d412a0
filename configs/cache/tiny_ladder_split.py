"""Step 1: background and objects do not see each other in the vision tower, the sequence stays. For evaluation only."""

from mmengine.config import read_base

with read_base():
    from .tiny_separators_projector import *

model.update(lmm=dict(order="image", train=()))
