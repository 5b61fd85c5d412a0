"""Do the tower's earlier layers help, mixed by learned scalars? Baseline: tiny/detseg_joint."""

from mmengine.config import read_base

with read_base():
    from ..tiny.detseg_joint import *

model.update(
    heads=dict(detection=dict(neck=dict(gate="static")), segmentation=dict(neck=dict(gate="static")))
)
