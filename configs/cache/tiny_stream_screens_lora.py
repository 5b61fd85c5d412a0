"""Serving step 5, after tiny_cached_lora (`--checkpoint`): what changes between frames is object."""

from mmengine.config import read_base

with read_base():
    from .tiny_cached_lora import *

from flmm_detseg.cache import FrameDifference, Partitioner

# As a whole: an update would keep arguments of the source that it was trained with.
model["lmm"]["partitioner"] = dict(type=Partitioner, source=dict(type=FrameDifference, threshold=0), dilate=1)
