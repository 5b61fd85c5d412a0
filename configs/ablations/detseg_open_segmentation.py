"""Does a segmenter that compares pixels with class names keep up with one filter per class? Baseline: tiny/detseg_joint."""

from mmengine.config import read_base

with read_base():
    from ..tiny.detseg_joint import *

model.update(heads=dict(segmentation=dict(classifier="open")))
