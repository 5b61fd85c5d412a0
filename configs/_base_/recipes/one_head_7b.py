"""Shared part of recipes: one head on the frozen LLaVA-1.5-7B.

A recipe adds `model.heads`, `train_dataloader.dataset`, and the number of iterations (`train_cfg.max_iters` and
`param_scheduler[1].end`); and the data sets that its evaluation takes by name (`coco_eval`, `semseg_eval`, `vqa_eval`).
"""

from mmengine.config import read_base

with read_base():
    from ..default_runtime import *
    from ..models.llava15_7b import lmm
    from ..schedules.adamw_detseg import *

from flmm_detseg.datasets import EpochSampler, collate_samples
from flmm_detseg.models import GroundingLMM

model = dict(type=GroundingLMM, lmm=lmm, init_from=[], new_parts=[])
# There is no LoRA yet, so there is no group for it.
optim_wrapper["optimizer"]["groups"] = {}
train_cfg.update(val_interval=5000)
train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type=EpochSampler, shuffle=True),
    collate_fn=dict(type=collate_samples),
)
