"""Does it help to keep every task to LoRA groups of its own? Baseline: tiny/detseg_joint."""

from mmengine.config import read_base

with read_base():
    from ..tiny.detseg_joint import *

model.update(
    isolate=dict(
        detection=("vision",),
        segmentation=("vision",),
        phrase=("llm", "projector"),
        language=("llm", "projector"),
    )
)
