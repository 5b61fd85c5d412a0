"""Data sets that make other samples of the samples of a reader."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flmm_detseg.datasets.base import GroundingDataset
from flmm_detseg.datasets.policy import Problem
from flmm_detseg.registry import DATASETS, SCOPE


def build_reader(dataset: GroundingDataset | Mapping[str, Any]) -> Any:
    """A reader, from its config where it is not built yet."""
    return DATASETS.build({"_scope_": SCOPE, **dataset}) if isinstance(dataset, Mapping) else dataset


class DerivedDataset(GroundingDataset, ABC):
    """Base of such data sets: what is known about the records is known by their reader.

    Args:
        dataset: A reader, or its config.

    Attributes:
        dataset: The reader.
    """

    def __init__(self, dataset: GroundingDataset | Mapping[str, Any]) -> None:
        super().__init__("raise")
        self.dataset = build_reader(dataset)

    @property
    def annotation_files(self) -> tuple[Path, ...]:  # type: ignore[override]  # not to be set from outside
        """Annotation files of the reader."""
        return self.dataset.annotation_files

    @property
    def problems(self) -> list[Problem]:
        """Skipped records of the reader."""
        return self.dataset.problems

    @property
    def metainfo(self) -> dict[str, Any]:
        """The reader's facts."""
        return {**self.dataset.metainfo, **super().metainfo}

    def set_epoch(self, epoch: int) -> None:
        """Selects the epoch of random choices, of the reader too."""
        super().set_epoch(epoch)
        self.dataset.set_epoch(epoch)

    def report(self) -> dict[str, Any]:
        """Counts, with the report of the reader."""
        return {**super().report(), "dataset": self.dataset.report()}
