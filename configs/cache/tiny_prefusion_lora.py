"""Step 5 on step 4: LoRA after question fusion."""

from mmengine.config import read_base

with read_base():
    from .tiny_prefusion import *

model.update(lmm=dict(lmm=dict(lora=ladder_lora)))
optim_wrapper.update(optimizer=dict(groups={".lora_": dict(lr_mult=1.0, decay_mult=0.0)}))
train_cfg.update(max_iters=600)
param_scheduler[1].update(end=600)
