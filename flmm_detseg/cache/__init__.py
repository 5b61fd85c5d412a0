"""Background-token cache: the same background is never computed twice. See docs/background_cache.md."""

from flmm_detseg.cache.answering import Answer
from flmm_detseg.cache.detectors import (
    FrameDifference,
    GivenRegions,
    NoRegions,
    Partitioner,
    PluginRegions,
    RandomRegions,
    Regions,
    RegionSource,
)
from flmm_detseg.cache.detectors_hf import HFDetector
from flmm_detseg.cache.layout import PromptLayout
from flmm_detseg.cache.model import CachedLMM
from flmm_detseg.cache.parts import load_own, part_reports, save_own
from flmm_detseg.cache.prefusion import PreFusion
from flmm_detseg.cache.session import StreamSession
from flmm_detseg.cache.settings import ApproximateSettings, CacheSettings
from flmm_detseg.cache.store import BackgroundCache
from flmm_detseg.cache.types import BackgroundKey, Match, Namespace, PatchPartition, PrefixKV

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
    "load_own",
    "part_reports",
    "save_own",
]
