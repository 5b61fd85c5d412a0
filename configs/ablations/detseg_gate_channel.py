"""Does a mixture of layers for every channel beat one layer? Baseline: tiny/detseg_joint."""

from mmengine.config import read_base

with read_base():
    from ..tiny.detseg_joint import *

model.update(
    heads=dict(detection=dict(neck=dict(gate="channel")), segmentation=dict(neck=dict(gate="channel")))
)
