"""Serving a camera or a screen with level L3: backgrounds that differ by noise are used as well. Off elsewhere."""

from mmengine.config import read_base

with read_base():
    from .tiny_stream_screens import *

from flmm_detseg.cache import ApproximateSettings

# Differences that the cache tolerates count as no change here too: otherwise all noise would be object.
model.update(lmm=dict(partitioner=dict(source=dict(threshold=4))))
stream_cache.update(approximate=dict(type=ApproximateSettings, tau=4, share=0.05))
