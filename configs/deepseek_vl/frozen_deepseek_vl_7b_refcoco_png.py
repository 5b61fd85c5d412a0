"""F-LMM's recipe on DeepSeek-VL 7B: U-Net and SAM ViT-L on RefCOCO/+/g and PNG. Nobody has trained it here."""

from mmengine.config import read_base

with read_base():
    from .._base_.models.deepseek_vl_7b import lmm
    from .._base_.recipes.refcoco_png import *

model.update(lmm=lmm)
