"""Serving screens or a fixed camera with LLaVA-1.5-7B after stage 2: what changes is object, no detector runs."""

from mmengine.config import read_base

with read_base():
    from .cached_llava15_7b_lora import *

from flmm_detseg.cache import FrameDifference, Partitioner

# As a whole: an update would keep arguments of the source that it was trained with.
model["lmm"]["partitioner"] = dict(type=Partitioner, source=dict(type=FrameDifference), dilate=1)
