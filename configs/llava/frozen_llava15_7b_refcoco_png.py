"""F-LMM on LLaVA-1.5-7B: U-Net + SAM ViT-L on RefCOCO/+/g and PNG. Expected: RefCOCO val cIoU about 75 (paper)."""

from mmengine.config import read_base

with read_base():
    from .._base_.models.llava15_7b import lmm
    from .._base_.recipes.refcoco_png import *

model.update(lmm=lmm)
