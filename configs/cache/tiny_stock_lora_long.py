"""Control of tiny_cached_lora_long: the LLaVA without groups, same LoRA, same training."""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.tinyworld_large import large_vqa_train
    from .._base_.datasets.tinyworld_streams import streams_train
    from .tiny_stock_lora import *

train_dataloader["dataset"]["datasets"] = [large_vqa_train, streams_train]
train_cfg.update(max_iters=2400)
param_scheduler[1].update(end=2400)
