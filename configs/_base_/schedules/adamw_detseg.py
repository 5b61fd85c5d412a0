"""AdamW in bf16, 60 k iterations, a learning rate for each part.

LoRA of the vision tower learns slower than the heads, that of LLM and projector faster (the longest match wins).
LoRA does not decay, nor do the balancer's parameters (GroupedAdamW takes care of those).
"""

from mmengine.model import MMDistributedDataParallel
from mmengine.optim import AmpOptimWrapper, CosineAnnealingLR, LinearLR

from flmm_detseg.engine import GroupedAdamW, ResumableTrainLoop

# Kept by `--deepspeed`, which replaces everything of the wrapper but the optimizer.
optim_wrapper = dict(
    type=AmpOptimWrapper,
    optimizer=dict(
        type=GroupedAdamW,
        lr=1e-4,
        betas=(0.9, 0.999),
        weight_decay=0.05,
        groups={
            "vision_tower": dict(lr_mult=0.5, decay_mult=0.0),
            ".lora_": dict(lr_mult=2.0, decay_mult=0.0),
        },
    ),
    clip_grad=dict(max_norm=1.0, error_if_nonfinite=False),
    # Above 1, parts count alike, whatever they contain: not the gradient of one batch, which weighs all targets alike.
    accumulative_counts=1,
    loss_scale="dynamic",
    dtype="bfloat16",
)
param_scheduler = [
    dict(type=LinearLR, start_factor=0.01, by_epoch=False, begin=0, end=1000),
    dict(type=CosineAnnealingLR, eta_min=0.0, by_epoch=False, begin=1000, end=60000),
]
train_cfg = dict(type=ResumableTrainLoop, max_iters=60000, val_interval=1000000)
model_wrapper_cfg = dict(type=MMDistributedDataParallel)
