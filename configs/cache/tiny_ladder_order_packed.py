"""Step 2 with positions 0, 1, 2, ... instead of each patch's own. For evaluation only."""

from mmengine.config import read_base

with read_base():
    from .tiny_ladder_order import *

model.update(lmm=dict(positions="packed"))
