"""Background cache on LLaVA-1.5-7B, stage 1: separators and projector learn isolated groups, background first.

xtuner train configs/cache/cached_llava15_7b.py --deepspeed deepspeed_zero2
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.coco_ade_vqa import vqa_eval, vqa_train
    from .._base_.models.coco_ade_heads import language
    from .._base_.recipes.one_head_7b import *
    from .._base_.models.cached_llava15_7b import lmm, stream_cache  # over the recipe's LMM

model["lmm"] = lmm
model.update(heads=dict(language=language))
train_dataloader.update(batch_size=4, dataset=vqa_train)
param_scheduler[1].update(end=10000)
train_cfg.update(max_iters=10000)
