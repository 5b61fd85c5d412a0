"""Does rung 5 catch up with more training? Baseline: cache/tiny_cached_lora, 600 iterations."""

from mmengine.config import read_base

with read_base():
    from .tiny_cached_lora import *

train_cfg.update(max_iters=2400)
param_scheduler[1].update(end=2400)
