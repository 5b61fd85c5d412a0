"""Dataclasses that cross rooms. May import torch and numpy only."""

from flmm_detseg.structures.generation import Generation
from flmm_detseg.structures.grid import GridLevel, PatchGrid
from flmm_detseg.structures.maps import LogitMaps, PackedMasks
from flmm_detseg.structures.sample import ANSWER_TASKS, DenseTargets, Phrase, Sample
from flmm_detseg.structures.states import (
    CaptureSpec,
    GroundingBatch,
    HiddenRows,
    LMMInputs,
    LMMStates,
    Prediction,
)

__all__ = [
    "ANSWER_TASKS",
    "CaptureSpec",
    "DenseTargets",
    "Generation",
    "GridLevel",
    "GroundingBatch",
    "HiddenRows",
    "LMMInputs",
    "LMMStates",
    "LogitMaps",
    "PackedMasks",
    "PatchGrid",
    "Phrase",
    "Prediction",
    "Sample",
]
