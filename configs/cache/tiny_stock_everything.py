"""Control of tiny_cached_everything: the LLaVA as it is, the same training."""

from mmengine.config import read_base

with read_base():
    from .tiny_ladder_stock import *

model.update(lmm=dict(frozen=False))
optim_wrapper.update(optimizer=dict(lr=6e-4))
train_cfg.update(max_iters=2400)
param_scheduler[1].update(end=2400)
