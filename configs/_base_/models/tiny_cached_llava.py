"""The tiny LLaVA with isolated background and objects, background first; `stream_cache` is for serving it."""

from mmengine.config import read_base

with read_base():
    from .cached_llava15_7b import lmm
    from .tiny_llava_streams import lmm as stock_lmm

from flmm_detseg.cache import CacheSettings

lmm["lmm"] = stock_lmm
lmm.update(projectors="shared")
stream_cache = dict(type=CacheSettings, host_bytes=1 << 30, min_tiles=20)
# The ladder's last step, and its control without a cache.
ladder_lora = dict(vision=dict(r=8, alpha=32, target="qkv"), llm=dict(r=16, alpha=64, target="attention"))
