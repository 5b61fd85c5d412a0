"""Heads alone on two CPU cores, fp32: 400 iterations."""

from mmengine.model import MMDistributedDataParallel
from mmengine.optim import CosineAnnealingLR, LinearLR, OptimWrapper

from flmm_detseg.engine import GroupedAdamW, ResumableTrainLoop

optim_wrapper = dict(
    type=OptimWrapper,
    optimizer=dict(type=GroupedAdamW, lr=2e-3, betas=(0.9, 0.999), weight_decay=0.01, groups=dict()),
    clip_grad=dict(max_norm=1.0, error_if_nonfinite=False),
    # Above 1, parts count alike, whatever they contain: not the gradient of one batch, which weighs all targets alike.
    accumulative_counts=1,
)
param_scheduler = [
    dict(type=LinearLR, start_factor=0.1, by_epoch=False, begin=0, end=30),
    dict(type=CosineAnnealingLR, eta_min=0.0, by_epoch=False, begin=30, end=400),
]
train_cfg = dict(type=ResumableTrainLoop, max_iters=400, val_interval=100000)
model_wrapper_cfg = dict(type=MMDistributedDataParallel)
