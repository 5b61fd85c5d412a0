"""Background-token cache: the same background is never computed twice. See docs/background_cache.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flmm_detseg.utils.lazy import lazy_names

if TYPE_CHECKING:
    from flmm_detseg.cache.cached_lmm import CachedLMM
    from flmm_detseg.cache.own_tensors import load_own, part_reports, save_own
    from flmm_detseg.cache.reading.layout import PromptLayout
    from flmm_detseg.cache.reading.prefusion import PreFusion
    from flmm_detseg.cache.regions.hf_detector import HFDetector
    from flmm_detseg.cache.regions.sources import (
        FrameDifference,
        GivenRegions,
        NoRegions,
        Partitioner,
        PluginRegions,
        RandomRegions,
        Regions,
        RegionSource,
    )
    from flmm_detseg.cache.regions.text_regions import TextRegions
    from flmm_detseg.cache.regions.united_regions import UnitedRegions
    from flmm_detseg.cache.serving.answer import Answer
    from flmm_detseg.cache.serving.session import StreamSession
    from flmm_detseg.store.background_cache import BackgroundCache
    from flmm_detseg.store.records import BackgroundKey, Match, Namespace, PrefixKV
    from flmm_detseg.store.settings import ApproximateSettings, CacheSettings
    from flmm_detseg.structures.partition import PatchPartition

__all__ = [
    "Answer",
    "ApproximateSettings",
    "BackgroundCache",
    "BackgroundKey",
    "CacheSettings",
    "CachedLMM",
    "FrameDifference",
    "GivenRegions",
    "HFDetector",
    "Match",
    "Namespace",
    "NoRegions",
    "Partitioner",
    "PatchPartition",
    "PluginRegions",
    "PreFusion",
    "PrefixKV",
    "PromptLayout",
    "RandomRegions",
    "RegionSource",
    "Regions",
    "StreamSession",
    "TextRegions",
    "UnitedRegions",
    "load_own",
    "part_reports",
    "save_own",
]

__getattr__, __dir__ = lazy_names(__name__)
