"""Step 5, other variant: the language model's last two layers are trained, after step 3."""

from mmengine.config import read_base

with read_base():
    from .tiny_separators_projector import *

model.update(lmm=dict(train_layers=2))
optim_wrapper.update(optimizer=dict(lr=3e-4))
train_cfg.update(max_iters=600)
param_scheduler[1].update(end=600)
