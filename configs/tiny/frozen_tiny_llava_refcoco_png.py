"""The 7B recipe on the tiny LLaVA, the tiny SAM and TinyWorld: minutes on two CPU cores."""

from mmengine.config import read_base

with read_base():
    from .._base_.datasets.tinyworld_refcoco_png import *
    from .._base_.default_runtime import *
    from .._base_.models.tiny_llava import lmm
    from .._base_.models.unet_tiny_sam import phrase_grounding
    from .._base_.schedules.tiny import *

from flmm_detseg.models import GroundingLMM

model = dict(type=GroundingLMM, lmm=lmm, heads=dict(phrase=phrase_grounding))
