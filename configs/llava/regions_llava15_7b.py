"""Questions that point, of LLaVA-1.5-7B: only the reader of regions learns. Nobody has trained it.

The question files are your own (docs/python_api.md, "Questions that point"). Coordinates are written before each
region, as Ferret's are.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.models.coco_ade_heads import language
    from .._base_.recipes.one_head_7b import *

from flmm_detseg.datasets import QuestionDataset
from flmm_detseg.lmms.added.region_tokens import RegionTokens

lmm.update(parts=dict(regions=dict(type=RegionTokens, layers=(-2,))))
# Questions without regions go to the LMM as it was, bit for bit.
model.update(lmm=lmm, heads=dict(language=language), retention="switched")
_questions = dict(type=QuestionDataset, region_coordinates=dict())
train_dataloader.update(
    dataset=dict(_questions, file="data/regions/train.jsonl", image_dir="data/coco/train2017")
)
vqa_eval = dict(regions_val=dict(_questions, file="data/regions/val.jsonl", image_dir="data/coco/val2017"))
train_cfg.update(max_iters=10000)
param_scheduler[1].update(end=10000)
