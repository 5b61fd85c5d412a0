"""Which layers of the tower are worth reading for a mask? A learned weight for each. Baseline: tiny/seg_token_pointer."""

from mmengine.config import read_base

with read_base():
    from ..tiny.seg_token_pointer import *

model["heads"]["reasoning"]["neck"].update(gate="static")
