"""Stage 3 of LLaVA-Det-Seg on TinyWorld: stage 2 at a lower learning rate, distilled from the LMM as it was."""

from mmengine.config import read_base

with read_base():
    from .detseg_joint import *

model.update(heads=dict(language=dict(distill_weight=1.0, temperature=2.0)), l2sp=1e-4)
optim_wrapper.update(optimizer=dict(lr=3e-4))
param_scheduler[1].update(end=150)
train_cfg.update(max_iters=150)
