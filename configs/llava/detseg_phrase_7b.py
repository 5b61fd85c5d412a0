"""Stage 1 of LLaVA-Det-Seg on LLaVA-1.5-7B: F-LMM's phrase head, without the images that others are evaluated on."""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.refcoco_png_held_out import *
    from .._base_.default_runtime import *
    from .._base_.models.llava15_7b import lmm
    from .._base_.models.unet_sam_l import phrase_grounding
    from .._base_.schedules.adamw_8ep import *

from flmm_detseg.models import GroundingLMM

model = dict(type=GroundingLMM, lmm=lmm, heads=dict(phrase=phrase_grounding))
