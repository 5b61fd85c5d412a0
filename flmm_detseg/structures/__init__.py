"""Dataclasses that cross rooms. May import torch and numpy only."""

from flmm_detseg.structures.generation import Generation
from flmm_detseg.structures.graph import Graph, Port
from flmm_detseg.structures.grid import GridLevel, PatchGrid
from flmm_detseg.structures.head_ranking import HeadRanking
from flmm_detseg.structures.maps import LogitMaps, PackedMasks
from flmm_detseg.structures.mask_answer import AnswerWithMasks
from flmm_detseg.structures.partition import PatchPartition
from flmm_detseg.structures.regions import Region
from flmm_detseg.structures.sample import ANSWER_TASKS, RGB, DenseTargets, Phrase, Sample, Turn
from flmm_detseg.structures.states import (
    CaptureSpec,
    GroundingBatch,
    HiddenRows,
    ImageInputs,
    LMMInputs,
    LMMStates,
    Prediction,
)

__all__ = [
    "ANSWER_TASKS",
    "RGB",
    "AnswerWithMasks",
    "CaptureSpec",
    "DenseTargets",
    "Generation",
    "Graph",
    "GridLevel",
    "GroundingBatch",
    "HeadRanking",
    "HiddenRows",
    "ImageInputs",
    "LMMInputs",
    "LMMStates",
    "LogitMaps",
    "PackedMasks",
    "PatchGrid",
    "PatchPartition",
    "Phrase",
    "Port",
    "Prediction",
    "Region",
    "Sample",
    "Turn",
]
