"""LLaVA-1.5-7B with isolated background and objects, background first; `stream_cache` is for serving it."""

from mmengine.config import read_base

with read_base():
    from .llava15_7b import lmm as stock_lmm

from flmm_detseg.cache import CachedLMM, CacheSettings, GivenRegions, Partitioner, RandomRegions

lmm = dict(
    type=CachedLMM,
    lmm=stock_lmm,
    # Frames of streams know what changes in them; elsewhere boxes are random, so that every partition is read.
    # Serving names a source of its own.
    partitioner=dict(
        type=Partitioner,
        source=dict(type=GivenRegions, kind="meta", otherwise=dict(type=RandomRegions)),
        dilate=1,
    ),
    positions="raster",
    letterbox="background",
    # Their own, in float32: the LLaVA's is bfloat16, in which small updates round to nothing.
    projectors="separate",
    train=("separators", "projectors"),
)
# Keys and values of a background of 460 patches take about 240 MiB in bf16.
stream_cache = dict(
    type=CacheSettings, host_bytes=32 << 30, device_bytes=8 << 30, pin_host=True, min_tiles=64
)
