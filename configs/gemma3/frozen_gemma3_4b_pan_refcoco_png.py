"""F-LMM's recipe on Gemma 3 4B with pan and scan: U-Net and SAM ViT-L on RefCOCO/+/g and PNG. Nobody has trained it here."""

from mmengine.config import read_base

with read_base():
    from .._base_.models.gemma3_4b_pan import lmm
    from .._base_.recipes.refcoco_png import *

model.update(lmm=lmm)
