"""F-LMM's recipe on SmolVLM2 256M: U-Net and SAM ViT-L on RefCOCO/+/g and PNG. Nobody has trained it here."""

from mmengine.config import read_base

with read_base():
    from .._base_.models.smolvlm2_256m import lmm
    from .._base_.recipes.refcoco_png import *

model.update(lmm=lmm)
