"""F-LMM's schedule: AdamW 1e-4, 3 % warm-up, cosine to 0, 8 epochs of about 190 k samples on 8 GPUs, bf16."""

from mmengine.model import MMDistributedDataParallel
from mmengine.optim import AmpOptimWrapper, CosineAnnealingLR, LinearLR
from mmengine.runner import ValLoop
from torch.optim import AdamW

from flmm_detseg.engine import ResumableTrainLoop

optim_wrapper = dict(
    type=AmpOptimWrapper,
    optimizer=dict(type=AdamW, lr=1e-4, betas=(0.9, 0.999), weight_decay=0.01),
    clip_grad=dict(max_norm=1.0, error_if_nonfinite=False),
    # Above 1, parts count alike, whatever they contain: not the gradient of one batch, which weighs all targets alike.
    accumulative_counts=1,
    loss_scale="dynamic",
    dtype="bfloat16",
)
param_scheduler = [
    dict(type=LinearLR, start_factor=0.1, by_epoch=True, begin=0, end=0.24, convert_to_iter_based=True),
    dict(type=CosineAnnealingLR, eta_min=0.0, by_epoch=True, begin=0.24, end=8, convert_to_iter_based=True),
]
train_cfg = dict(type=ResumableTrainLoop, max_epochs=8, val_interval=10000)
val_cfg = dict(type=ValLoop)
# The model gives every trainable tensor a gradient: DDP need not look for unused ones.
model_wrapper_cfg = dict(type=MMDistributedDataParallel)
