"""F-LMM's recipe on Qwen3-VL-8B: U-Net and SAM ViT-L on RefCOCO/+/g and PNG. Nobody has trained it here."""

from mmengine.config import read_base

with read_base():
    from .._base_.models.qwen3_vl_8b import lmm
    from .._base_.recipes.refcoco_png import *

model.update(lmm=lmm)
