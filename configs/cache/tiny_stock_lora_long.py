"""Control of tiny_cached_lora_long: the LLaVA as it is with the same LoRA and the same training."""

from mmengine.config import read_base

with read_base():
    from .tiny_stock_lora import *

train_cfg.update(max_iters=2400)
param_scheduler[1].update(end=2400)
