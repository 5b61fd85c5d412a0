"""Readers of annotation formats, mixes and collation. See docs/architecture.md, section Rooms."""

from flmm_detseg.datasets.base import GroundingDataset
from flmm_detseg.datasets.collate import EpochSampler, collate_samples
from flmm_detseg.datasets.jsonl import JSONLDataset
from flmm_detseg.datasets.mix import ConcatMix, WeightedMix
from flmm_detseg.datasets.png import PNGDataset
from flmm_detseg.datasets.policy import Problem, RecordError
from flmm_detseg.datasets.refcoco import RefCOCODataset
from flmm_detseg.datasets.shuffled import ShuffledPhrases

__all__ = [
    "ConcatMix",
    "EpochSampler",
    "GroundingDataset",
    "JSONLDataset",
    "PNGDataset",
    "Problem",
    "RecordError",
    "RefCOCODataset",
    "ShuffledPhrases",
    "WeightedMix",
    "collate_samples",
]
