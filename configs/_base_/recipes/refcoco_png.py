"""Shared part of recipes: F-LMM's U-Net and SAM ViT-L on RefCOCO/+/g and PNG; a recipe adds `model.lmm`."""

from mmengine.config import read_base

with read_base():
    from ..datasets.refcoco_png import *
    from ..default_runtime import *
    from ..models.unet_sam_l import phrase_grounding
    from ..schedules.adamw_8ep import *

from flmm_detseg.models import GroundingLMM

model = dict(type=GroundingLMM, heads=dict(phrase=phrase_grounding))
