"""Step 2: background first, between separators that were never trained. For evaluation only."""

from mmengine.config import read_base

with read_base():
    from .tiny_separators_projector import *

model.update(lmm=dict(train=()))
