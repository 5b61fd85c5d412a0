"""Shared part of recipes: one head on the frozen tiny LLaVA, on TinyWorld.

A recipe adds `model.heads` and `train_dataloader.dataset`.
"""

from mmengine.config import read_base

with read_base():
    from ..datasets.tinyworld_detseg import *
    from ..default_runtime import *
    from ..models.tiny_llava import lmm
    from ..schedules.tiny_heads import *

from flmm_detseg.datasets import EpochSampler, collate_samples
from flmm_detseg.models import GroundingLMM

# A stage takes a few minutes: checkpoints are written more often, so that an interruption costs little.
default_hooks.update(checkpoint=dict(interval=100))
model = dict(type=GroundingLMM, lmm=lmm, init_from=[], new_parts=[])
train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    sampler=dict(type=EpochSampler, shuffle=True),
    collate_fn=dict(type=collate_samples),
)
