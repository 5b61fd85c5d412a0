"""The tiny LLaVA with isolated background and objects, background first; `stream_cache` is for serving it."""

from mmengine.config import read_base

with read_base():
    from .tiny_llava_streams import lmm as stock_lmm

from flmm_detseg.cache import CachedLMM, CacheSettings, GivenRegions, Partitioner, RandomRegions

lmm = dict(
    type=CachedLMM,
    lmm=stock_lmm,
    # Frames of streams know what changes in them; elsewhere boxes by lot, so that every partition is read.
    # Serving names a source of its own.
    partitioner=dict(
        type=Partitioner,
        source=dict(type=GivenRegions, kind="meta", otherwise=dict(type=RandomRegions)),
        dilate=1,
    ),
    positions="raster",
    letterbox="background",
    projectors="shared",
    train=("separators", "projectors"),
)
stream_cache = dict(type=CacheSettings, host_bytes=1 << 30, min_tiles=20)
# The ladder's last rung, and its control without a cache.
ladder_lora = dict(vision=dict(r=8, alpha=32, target="qkv"), llm=dict(r=16, alpha=64, target="attention"))
