"""Control of step 5: the LLaVA without groups, same LoRA, same training. It shows what more training alone gives."""

from mmengine.config import read_base

with read_base():
    from .._base_.models.tiny_cached_llava import ladder_lora
    from .tiny_ladder_stock import *

model.update(lmm=dict(lora=ladder_lora))
optim_wrapper.update(optimizer=dict(groups={".lora_": dict(lr_mult=1.0, decay_mult=0.0)}))
train_cfg.update(max_iters=600)
param_scheduler[1].update(end=600)
