"""F-LMM's recipe on LLaVA-OneVision 0.5B: U-Net and SAM ViT-L on RefCOCO/+/g and PNG. Nobody has trained it here."""

from mmengine.config import read_base

with read_base():
    from .._base_.models.llava_onevision_0_5b import lmm
    from .._base_.recipes.refcoco_png import *

model.update(lmm=lmm)
