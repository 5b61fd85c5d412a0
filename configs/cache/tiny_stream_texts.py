"""Serving screens with texts: what changes between frames is object, and every line of text, from the first frame on."""

from mmengine.config import read_base

with read_base():
    from .tiny_stream_screens import *

from flmm_detseg.cache import FrameDifference, Partitioner, TextRegions, UnitedRegions

# TinyWorld's digits are 13 pixels high: twice that is found more surely, and four times the pixels are still few.
texts = dict(type=TextRegions, min_score=0.5, padding=0, scale=2.0)
model["lmm"]["partitioner"] = dict(
    type=Partitioner,
    source=dict(type=UnitedRegions, sources=[dict(type=FrameDifference, threshold=0), texts]),
    dilate=1,
)
