"""Stage 3 of LLaVA-Det-Seg on LLaVA-1.5-7B: stage 2 at a lower learning rate, fully distilled from the LMM as it was."""

from mmengine.config import read_base

with read_base():
    from .detseg_lora import *

model.update(heads=dict(language=dict(distill_weight=1.0)))
optim_wrapper.update(optimizer=dict(lr=3e-5))
param_scheduler[1].update(end=15000)
train_cfg.update(max_iters=15000)
