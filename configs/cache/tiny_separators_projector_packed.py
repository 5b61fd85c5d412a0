"""Step 3 with positions 0, 1, 2, ... instead of each patch's own."""

from mmengine.config import read_base

with read_base():
    from .tiny_separators_projector import *

model.update(lmm=dict(positions="packed"))
