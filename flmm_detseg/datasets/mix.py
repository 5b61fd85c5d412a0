"""Several datasets as one: one after the other, or in given proportions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from flmm_detseg.datasets.base import GroundingDataset
from flmm_detseg.datasets.policy import Problem
from flmm_detseg.errors import ConfigError
from flmm_detseg.registry import DATASETS, SCOPE
from flmm_detseg.structures import Sample


class _Mix(Dataset[Sample], ABC):
    """Common part of the mixes; ``datasets`` are built ones or configs."""

    def __init__(self, datasets: Sequence[GroundingDataset | _Mix | Mapping[str, Any]]) -> None:
        if not datasets:
            raise ConfigError("`datasets` is empty; a mix needs at least one dataset")
        self.datasets = [
            DATASETS.build({"_scope_": SCOPE, **item}) if isinstance(item, Mapping) else item
            for item in datasets
        ]

    @property
    def annotation_files(self) -> tuple[Path, ...]:
        """Annotation files of all members."""
        return tuple(path for dataset in self.datasets for path in dataset.annotation_files)

    @property
    def problems(self) -> list[Problem]:
        """Skipped records of all members."""
        return [problem for dataset in self.datasets for problem in dataset.problems]

    @property
    def metainfo(self) -> dict[str, Any]:
        """Facts MMEngine passes to metrics and visualisers: sums over the members (counts only, no class names)."""
        infos = [dataset.metainfo for dataset in self.datasets]
        keys = [key for key, value in infos[0].items() if isinstance(value, int)]
        return {key: sum(info[key] for info in infos) for key in keys}

    @property
    def epoch(self) -> int:
        """The epoch that random choices belong to."""
        return self.datasets[0].epoch

    def set_epoch(self, epoch: int) -> None:
        """Passes the epoch on to all members."""
        for dataset in self.datasets:
            dataset.set_epoch(epoch)

    def report(self) -> dict[str, Any]:
        """Reports of the members."""
        return {"records": len(self), "members": [dataset.report() for dataset in self.datasets]}

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _locate(self, index: int) -> tuple[int, int]:
        """Member and inner index of a position."""

    def __getitem__(self, index: int) -> Sample:
        member, inner = self._locate(range(len(self))[index])
        return self.datasets[member][inner]

    def record_id(self, index: int) -> str:
        """Record id of a record, without reading its image."""
        member, inner = self._locate(range(len(self))[index])
        return self.datasets[member].record_id(inner)

    def phrase_texts(self, index: int) -> tuple[str, list[str]]:
        """Image id and phrase texts of a record, without reading its image."""
        member, inner = self._locate(range(len(self))[index])
        return self.datasets[member].phrase_texts(inner)

    def mentions(self, index: int) -> list[str]:
        """All that a member says of a record's phrases, in whatever epoch."""
        member, inner = self._locate(range(len(self))[index])
        return self.datasets[member].mentions(inner)


@DATASETS.register_module()
class ConcatMix(_Mix):
    """All records of the members, one member after the other (F-LMM's plain concat).

    Args:
        datasets: Datasets or their configs.
    """

    def __init__(self, datasets: Sequence[Any]) -> None:
        super().__init__(datasets)
        self._ends = list(accumulate(len(dataset) for dataset in self.datasets))

    def __len__(self) -> int:
        return self._ends[-1]

    def _locate(self, index: int) -> tuple[int, int]:
        member = bisect_right(self._ends, index)
        return member, index - (self._ends[member - 1] if member else 0)


@DATASETS.register_module()
class WeightedMix(_Mix):
    """Members in given proportions; a function of (``seed``, epoch, index) alone.

    Each member is an endless stream of shuffled passes over its records, and an epoch continues where the
    last one
    stopped: no record comes twice before all of its dataset came once.

    Args:
        datasets: Datasets or their configs.
        weights: One positive number per dataset; only their ratios matter.
        epoch_length: Records per epoch; None: the sum of the members' lengths.
        seed: Of order and passes.

    Raises:
        ConfigError: Weights or length do not fit.
    """

    def __init__(
        self,
        datasets: Sequence[Any],
        weights: Sequence[float],
        epoch_length: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(datasets)
        if len(weights) != len(self.datasets) or any(weight <= 0 for weight in weights):
            raise ConfigError(
                f"`weights` is {list(weights)}; give one positive number per dataset ({len(self.datasets)})"
            )
        if epoch_length is not None and epoch_length < 1:
            raise ConfigError(f"`epoch_length` is {epoch_length}; it must be at least 1, or None")
        self.weights, self.seed = [float(weight) for weight in weights], seed
        self.epoch_length = epoch_length or sum(len(dataset) for dataset in self.datasets)
        self.counts = proportional(self.weights, self.epoch_length)
        self._plan: tuple[int, np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.epoch_length

    def _locate(self, index: int) -> tuple[int, int]:
        epoch = self.epoch
        if self._plan is None or self._plan[0] != epoch:
            self._plan = (epoch, *self._make_plan(epoch))
        return int(self._plan[1][index]), int(self._plan[2][index])

    def _lengths(self) -> list[int]:
        """Per member, the number of items (records or images) that positions count."""
        return [len(dataset) for dataset in self.datasets]

    def _make_plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Member and inner index of each position of an epoch."""
        members = np.repeat(np.arange(len(self.counts)), self.counts)
        inner = np.concatenate(
            [
                member_stretch(length, count, epoch, (self.seed, 1 + member))
                for member, (length, count) in enumerate(zip(self._lengths(), self.counts))
            ]
        )
        order = np.random.default_rng((self.seed, epoch)).permutation(self.epoch_length)
        return members[order], inner[order]


@DATASETS.register_module()
class ImageMix(WeightedMix):
    """Images of the members in given proportions, several records of an image one after the other.

    A batch of such records reads each of its images once (:mod:`flmm_detseg.lmms.capture.packing`,
    :mod:`flmm_detseg.cache.reading.packing`), and learns from all of its questions. The order is drawn here: use it
    with ``ImageSampler`` and a batch size that ``per_image`` divides (the training loop checks both).

    Which records of an image a visit takes is random, a function of (``seed``, epoch, position) alone; an image
    that has fewer comes with some of them twice. ``Sample.meta["visit"]`` names the visit: what is random about an
    image (``RandomRegions``) is then the same for all of its records, however batches are cut.

    Args:
        datasets: Datasets or their configs.
        weights: One positive number per dataset; of the images.
        per_image: Records of an image.
        images_per_epoch: Images per epoch; None: those of all members.
        seed: Of order, passes and choice.

    Raises:
        ConfigError: A number does not fit.
    """

    def __init__(
        self,
        datasets: Sequence[Any],
        weights: Sequence[float],
        per_image: int,
        images_per_epoch: int | None = None,
        seed: int = 0,
    ) -> None:
        for name, value in (("per_image", per_image), ("images_per_epoch", images_per_epoch)):
            if value is not None and value < 1:
                raise ConfigError(f"`{name}` is {value}; it must be at least 1")
        super().__init__(datasets, weights, images_per_epoch, seed)
        if any(isinstance(dataset, WeightedMix) for dataset in self.datasets):
            raise ConfigError(
                "a member of ImageMix is itself a weighted mix, whose records change with the epoch; list its data "
                "sets and weights here instead"
            )
        self.per_image = per_image
        self.images = [_records_by_image(dataset) for dataset in self.datasets]
        if images_per_epoch is None:
            self.epoch_length = sum(self._lengths())
            self.counts = proportional(self.weights, self.epoch_length)

    def __len__(self) -> int:
        return self.epoch_length * self.per_image

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        sample = super().__getitem__(index)
        return replace(sample, meta={**sample.meta, "visit": f"{self.epoch}/{index // self.per_image}"})

    def _lengths(self) -> list[int]:
        return [len(images) for images in self.images]

    def _locate(self, index: int) -> tuple[int, int]:
        position, place = divmod(index, self.per_image)
        member, image = super()._locate(position)
        records = self.images[member][image]
        order = np.random.default_rng((self.seed, self.epoch, position)).permutation(len(records))
        return member, int(records[order[place % len(records)]])


def _records_by_image(dataset: Any) -> list[np.ndarray]:
    """Indices of the records of each image, in order of the images' first records."""
    found: dict[str, list[int]] = {}
    for index in range(len(dataset)):
        found.setdefault(dataset.phrase_texts(index)[0], []).append(index)
    return [np.array(indices) for indices in found.values()]


def member_stretch(length: int, count: int, epoch: int, seed: tuple[int, ...] | None) -> np.ndarray:
    """The part that an epoch takes of a data set's endless sequence of passes over its records.

    Args:
        length: Records of the data set.
        count: Records of each epoch; consecutive epochs go on where the last one stopped.
        epoch: Number of the epoch.
        seed: Of the passes' orders; None: every pass in order.

    Returns:
        Indices, int64 ``[count]``.
    """
    first, last = epoch * count // length, ((epoch + 1) * count - 1) // length
    passes = [
        np.arange(length) if seed is None else np.random.default_rng((*seed, number)).permutation(length)
        for number in range(first, last + 1)
    ]
    start = epoch * count - first * length
    return np.concatenate(passes)[start : start + count] if passes else np.zeros(0, dtype=np.int64)


def proportional(weights: Sequence[float], total: int) -> list[int]:
    """Divides ``total`` by weights with the largest-remainder rule (first member wins ties)."""
    shares = [weight / sum(weights) * total for weight in weights]
    counts = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: (counts[i] - shares[i], i))
    for index in by_remainder[: total - sum(counts)]:
        counts[index] += 1
    return counts
