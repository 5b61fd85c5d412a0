"""Step 5, the most that can be trained: the whole language model, and LoRA in the vision tower, after step 3."""

from mmengine.config import read_base

with read_base():
    from .tiny_separators_projector import *

model.update(lmm=dict(train_layers=4, lmm=dict(lora=dict(vision=ladder_lora["vision"]))))
optim_wrapper.update(optimizer=dict(lr=3e-4))
train_cfg.update(max_iters=600)
param_scheduler[1].update(end=600)
