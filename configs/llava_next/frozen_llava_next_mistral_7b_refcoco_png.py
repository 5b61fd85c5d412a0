"""F-LMM on LLaVA-NeXT mistral 7B: U-Net + SAM ViT-L on RefCOCO/+/g and PNG. Expected: RefCOCO val cIoU 75.7, PNG 66.5 (paper)."""

from mmengine.config import read_base

with read_base():
    from .._base_.models.llava_next_mistral_7b import lmm
    from .._base_.recipes.refcoco_png import *

model.update(lmm=lmm)
