"""Answers with masks on two CPU cores, fp32: 1,500 iterations; nothing decays, as LISA has it."""

from mmengine.model import MMDistributedDataParallel
from mmengine.optim import CosineAnnealingLR, LinearLR, OptimWrapper

from flmm_detseg.engine import GroupedAdamW, ResumableTrainLoop

optim_wrapper = dict(
    type=OptimWrapper,
    optimizer=dict(
        type=GroupedAdamW,
        lr=2e-3,
        betas=(0.9, 0.95),
        weight_decay=0.0,
        # SAM's decoder as fast as the rest learns to draw nothing whatever it is prompted with, before the prompts say
        # anything (docs/reasoning.md).
        groups={".lora_": dict(lr_mult=0.5), "sam.": dict(lr_mult=0.03)},
    ),
    clip_grad=dict(max_norm=1.0, error_if_nonfinite=False),
    # Above 1, parts count alike, whatever they contain: not the gradient of one batch, which weighs all targets alike.
    accumulative_counts=1,
)
param_scheduler = [
    dict(type=LinearLR, start_factor=0.1, by_epoch=False, begin=0, end=60),
    dict(type=CosineAnnealingLR, eta_min=0.0, by_epoch=False, begin=60, end=1500),
]
train_cfg = dict(type=ResumableTrainLoop, max_iters=1500, val_interval=100000)
model_wrapper_cfg = dict(type=MMDistributedDataParallel)
