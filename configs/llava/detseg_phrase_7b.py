"""Stage 1 of LLaVA-Det-Seg on LLaVA-1.5-7B: F-LMM's phrase head, without the images that others are evaluated on."""

from mmengine.config import read_base

with read_base():
    from .._base_.models.llava15_7b import lmm
    from .._base_.recipes.refcoco_png import *
    from .._base_.datasets.refcoco_png_held_out import *  # over the recipe's data

model.update(lmm=lmm)
