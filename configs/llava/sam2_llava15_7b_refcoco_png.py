"""F-LMM on LLaVA-1.5-7B with SAM 2.1 Hiera-L as refiner; any recipe switches like this. Nobody has trained it."""

from mmengine.config import read_base

with read_base():
    from .._base_.models.unet_sam2_l import phrase_grounding_sam2
    from .frozen_llava15_7b_refcoco_png import *

model["heads"]["phrase"] = phrase_grounding_sam2
