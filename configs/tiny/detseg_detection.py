"""Stage 1 of LLaVA-Det-Seg on TinyWorld: the detection head alone, on the frozen tiny LLaVA."""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.tinyworld_detseg import *
    from .._base_.default_runtime import *
    from .._base_.models.tiny_detseg_heads import detection
    from .._base_.models.tiny_llava import lmm
    from .._base_.schedules.tiny_heads import *

from flmm_detseg.datasets import EpochSampler, collate_samples
from flmm_detseg.models import GroundingLMM

# A stage is a few minutes: what a stop can cost is to be less.
default_hooks.update(checkpoint=dict(interval=100))
model = dict(type=GroundingLMM, lmm=lmm, heads=dict(detection=detection), init_from=[], new_parts=[])
train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    sampler=dict(type=EpochSampler, shuffle=True),
    collate_fn=dict(type=collate_samples),
    dataset=detection_train,
)
