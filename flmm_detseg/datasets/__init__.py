"""Readers of annotation formats, mixes and collation. See docs/architecture.md, section Rooms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flmm_detseg.utils.lazy import lazy_names

if TYPE_CHECKING:
    from flmm_detseg.datasets.absent_phrases import AbsentPhrases
    from flmm_detseg.datasets.base import GroundingDataset
    from flmm_detseg.datasets.class_prompts import ClassPrompts
    from flmm_detseg.datasets.coco_instances import COCOInstancesDataset
    from flmm_detseg.datasets.collate import EpochSampler, ImageSampler, collate_samples
    from flmm_detseg.datasets.grandf import GranDfDataset
    from flmm_detseg.datasets.grefcoco import GRefCOCODataset
    from flmm_detseg.datasets.joint import JointDataset
    from flmm_detseg.datasets.jsonl import JSONLDataset
    from flmm_detseg.datasets.llava_instruct import LLaVAInstructDataset
    from flmm_detseg.datasets.mix import ConcatMix, ImageMix, WeightedMix
    from flmm_detseg.datasets.png import PNGDataset
    from flmm_detseg.datasets.policy import Problem, RecordError
    from flmm_detseg.datasets.questions import QuestionDataset
    from flmm_detseg.datasets.reason_seg import ReasonSegDataset
    from flmm_detseg.datasets.refcoco import RefCOCODataset
    from flmm_detseg.datasets.seg_answers import SegAnswers
    from flmm_detseg.datasets.semantic_maps import SemanticMapsDataset
    from flmm_detseg.datasets.shuffled import ShuffledPhrases
    from flmm_detseg.datasets.task_sampler import MultiTaskMix, TaskBatchSampler, TaskSampler

__all__ = [
    "AbsentPhrases",
    "COCOInstancesDataset",
    "ClassPrompts",
    "ConcatMix",
    "EpochSampler",
    "GRefCOCODataset",
    "GranDfDataset",
    "GroundingDataset",
    "ImageMix",
    "ImageSampler",
    "JSONLDataset",
    "JointDataset",
    "LLaVAInstructDataset",
    "MultiTaskMix",
    "PNGDataset",
    "Problem",
    "QuestionDataset",
    "ReasonSegDataset",
    "RecordError",
    "RefCOCODataset",
    "SegAnswers",
    "SemanticMapsDataset",
    "ShuffledPhrases",
    "TaskBatchSampler",
    "TaskSampler",
    "WeightedMix",
    "collate_samples",
]

__getattr__, __dir__ = lazy_names(__name__)
