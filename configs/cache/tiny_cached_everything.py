"""The end of the ladder: all of the LLaVA is trained, its embeddings too, so that it can learn to read screens."""

from mmengine.config import read_base

with read_base():
    from .tiny_separators_projector import *

model.update(lmm=dict(train=("separators",), lmm=dict(frozen=False)))
optim_wrapper.update(optimizer=dict(lr=6e-4))
train_cfg.update(max_iters=2400)
param_scheduler[1].update(end=2400)
