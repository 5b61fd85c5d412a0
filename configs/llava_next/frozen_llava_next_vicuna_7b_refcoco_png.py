"""F-LMM on LLaVA-NeXT vicuna 7B: U-Net + SAM ViT-L on RefCOCO/+/g and PNG."""

from mmengine.config import read_base

with read_base():
    from .._base_.models.llava_next_vicuna_7b import lmm
    from .._base_.recipes.refcoco_png import *

model.update(lmm=lmm)
