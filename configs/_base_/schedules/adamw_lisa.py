"""LISA's schedule: AdamW at 3e-4 without decay, 5,000 updates of 10 parts each, the rate rising for 100 and then falling.

2 samples on each of 8 GPUs in 10 parts are its batch of 160.
"""

from mmengine.model import MMDistributedDataParallel
from mmengine.optim import AmpOptimWrapper, LinearLR

from flmm_detseg.engine import GroupedAdamW, ResumableTrainLoop

# Kept by `--deepspeed`, which replaces everything of the wrapper but the optimizer.
optim_wrapper = dict(
    type=AmpOptimWrapper,
    optimizer=dict(type=GroupedAdamW, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.0, groups=dict()),
    clip_grad=dict(max_norm=1.0, error_if_nonfinite=False),
    # Parts count alike, whatever they contain: not the gradient of one batch, which weighs all targets alike.
    accumulative_counts=10,
    loss_scale="dynamic",
    dtype="bfloat16",
)
param_scheduler = [
    dict(type=LinearLR, start_factor=0.01, by_epoch=False, begin=0, end=1000),
    dict(type=LinearLR, start_factor=1.0, end_factor=0.0, by_epoch=False, begin=1000, end=50000),
]
train_cfg = dict(type=ResumableTrainLoop, max_iters=50000, val_interval=1000000)
model_wrapper_cfg = dict(type=MMDistributedDataParallel)
