"""TextVQA and OCR-VQA with the unmodified LLaVA-1.5-7B: for evaluation only, nothing is trained.

flmm-detseg evaluate answers configs/llava/reading_llava15_7b.py --untrained --max-new-tokens 32

OCR-VQA's train split is in the data that LLaVA-1.5 was trained on; TextVQA's images are not.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.coco_ade_vqa import vqa_train
    from .._base_.datasets.textvqa_ocrvqa import vqa_eval
    from .._base_.models.coco_ade_heads import language
    from .._base_.recipes.one_head_7b import *

model.update(heads=dict(language=language))
train_dataloader.update(dataset=vqa_train)
