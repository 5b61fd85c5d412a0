"""Does stage 3 learn from the outputs of stage 1's heads, which read the LMM as it was? Baseline: tiny/detseg_stability."""

from mmengine.config import read_base

with read_base():
    from ..tiny.detseg_stability import *

model.update(
    teachers=dict(
        detection=dict(checkpoint="work_dirs/detseg_stages/detection/iter_400.pth", form="soft"),
        segmentation=dict(checkpoint="work_dirs/detseg_stages/segmentation/iter_400.pth", form="soft"),
    )
)
