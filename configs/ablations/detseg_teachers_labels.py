"""Or from what they find, as labels beside the annotated ones? Baseline: tiny/detseg_stability."""

from mmengine.config import read_base

with read_base():
    from ..tiny.detseg_stability import *

model.update(
    teachers=dict(
        detection=dict(checkpoint="work_dirs/detseg_stages/detection/iter_400.pth", form="labels"),
        segmentation=dict(checkpoint="work_dirs/detseg_stages/segmentation/iter_400.pth", form="labels"),
    )
)
