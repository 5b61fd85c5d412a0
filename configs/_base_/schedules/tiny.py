"""A few minutes on two CPU cores, fp32."""

from mmengine.model import MMDistributedDataParallel
from mmengine.optim import CosineAnnealingLR, LinearLR, OptimWrapper
from mmengine.runner import ValLoop
from torch.optim import AdamW

from flmm_detseg.engine import ResumableTrainLoop

optim_wrapper = dict(
    type=OptimWrapper,
    optimizer=dict(type=AdamW, lr=1e-3, betas=(0.9, 0.999), weight_decay=0.01),
    clip_grad=dict(max_norm=1.0, error_if_nonfinite=False),
    # Above 1, parts count alike, whatever they contain: not the gradient of one batch, which weighs all targets alike.
    accumulative_counts=1,
)
param_scheduler = [
    dict(type=LinearLR, start_factor=0.1, by_epoch=False, begin=0, end=60),
    dict(type=CosineAnnealingLR, eta_min=0.0, by_epoch=False, begin=60, end=1600),
]
train_cfg = dict(type=ResumableTrainLoop, max_iters=1600, val_interval=800)
val_cfg = dict(type=ValLoop)
model_wrapper_cfg = dict(type=MMDistributedDataParallel)
