"""Stage 1 of LLaVA-Det-Seg on LLaVA-1.5-7B: the detection head alone, on the frozen LMM."""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.coco_ade_vqa import coco_eval, detection_train
    from .._base_.datasets.coco_val import *
    from .._base_.default_runtime import *
    from .._base_.models.coco_ade_heads import detection
    from .._base_.models.llava15_7b import lmm
    from .._base_.schedules.adamw_detseg import *

from flmm_detseg.datasets import EpochSampler, collate_samples
from flmm_detseg.models import GroundingLMM

model = dict(type=GroundingLMM, lmm=lmm, heads=dict(detection=detection), init_from=[], new_parts=[])
# There is no LoRA yet, so there is no group for it.
optim_wrapper["optimizer"]["groups"] = {}
param_scheduler[1].update(end=30000)
train_cfg.update(max_iters=30000, val_interval=5000)
train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type=EpochSampler, shuffle=True),
    collate_fn=dict(type=collate_samples),
    dataset=detection_train,
)
