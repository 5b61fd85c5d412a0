"""Background cache on LLaVA-1.5-7B, stage 1: separators and projector learn isolated groups, background first.

xtuner train configs/cache/cached_llava15_7b.py --deepspeed deepspeed_zero2
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.coco_ade_vqa import vqa_eval, vqa_train
    from .._base_.default_runtime import *
    from .._base_.models.cached_llava15_7b import lmm, stream_cache
    from .._base_.models.coco_ade_heads import language
    from .._base_.schedules.adamw_detseg import *

from flmm_detseg.datasets import EpochSampler, collate_samples
from flmm_detseg.models import GroundingLMM

model = dict(type=GroundingLMM, lmm=lmm, heads=dict(language=language), init_from=[], new_parts=[])
# There is no LoRA yet, so there is no group for it.
optim_wrapper["optimizer"]["groups"] = {}
param_scheduler[1].update(end=10000)
train_cfg.update(max_iters=10000, val_interval=5000)
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type=EpochSampler, shuffle=True),
    collate_fn=dict(type=collate_samples),
    dataset=vqa_train,
)
