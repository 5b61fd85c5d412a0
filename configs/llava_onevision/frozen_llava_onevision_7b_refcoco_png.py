"""F-LMM's recipe on LLaVA-OneVision 7B: U-Net and SAM ViT-L on RefCOCO/+/g and PNG. Nobody has trained it here."""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.refcoco_png import *
    from .._base_.default_runtime import *
    from .._base_.models.llava_onevision_7b import lmm
    from .._base_.models.unet_sam_l import phrase_grounding
    from .._base_.schedules.adamw_8ep import *

from flmm_detseg.models import GroundingLMM

model = dict(type=GroundingLMM, lmm=lmm, heads=dict(phrase=phrase_grounding))
