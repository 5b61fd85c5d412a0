"""Serving screens with LLaVA-1.5-7B after stage 2: objects are lines of text and what changes. Needs the extra `ocr`."""

from mmengine.config import read_base

with read_base():
    from .cached_llava15_7b_screens import *

from flmm_detseg.cache import FrameDifference, Partitioner, TextRegions, UnitedRegions

model["lmm"]["partitioner"] = dict(
    type=Partitioner,
    # A phone's screen in half its size is a ninth of the detector's time; LLaVA itself sees it smaller yet.
    source=dict(type=UnitedRegions, sources=[dict(type=FrameDifference), dict(type=TextRegions, scale=0.5)]),
    dilate=1,
)
