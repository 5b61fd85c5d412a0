"""The stability model with its adapters off for plain questions: answers are those of the LMM as it was, bit for bit."""

from mmengine.config import read_base

with read_base():
    from .detseg_stability import *

model.update(retention="switched")
