"""The end of the ladder: step 5 four times as long, on 9840 scenes instead of 2050. Baseline: cache/tiny_cached_lora.

On 2050 scenes the LLaVA itself gets worse when trained as long: docs/background_cache_results.md.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.tinyworld_large import large_vqa_train
    from .._base_.datasets.tinyworld_streams import streams_train
    from .tiny_cached_lora import *

train_dataloader["dataset"]["datasets"] = [large_vqa_train, streams_train]
train_cfg.update(max_iters=2400)
param_scheduler[1].update(end=2400)
