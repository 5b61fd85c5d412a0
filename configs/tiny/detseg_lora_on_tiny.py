"""The 7B recipe of LLaVA-Det-Seg (its schedule, optimizer groups, hooks) on the tiny model and TinyWorld."""

from mmengine.config import read_base

with read_base():
    from ..llava.detseg_lora import *
    from .detseg_joint import (
        coco_eval,
        model,
        png_eval,
        refcoco_eval,
        semseg_eval,
        train_dataloader,
        vqa_eval,
    )
