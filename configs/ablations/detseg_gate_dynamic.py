"""Does a mixture of layers that depends on the image beat one layer? Baseline: tiny/detseg_joint."""

from mmengine.config import read_base

with read_base():
    from ..tiny.detseg_joint import *

model.update(
    heads=dict(detection=dict(neck=dict(gate="dynamic")), segmentation=dict(neck=dict(gate="dynamic")))
)
