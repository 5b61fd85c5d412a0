"""Data sets of several tasks in given proportions: one task per batch, or mixed batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import Sampler

from flmm_detseg.datasets.collate import EpochSampler
from flmm_detseg.datasets.mix import ConcatMix, member_stretch, proportional
from flmm_detseg.errors import ConfigError
from flmm_detseg.registry import DATASETS
from flmm_detseg.utils.names import suggest

MODES = ("one_task", "mixed")


@DATASETS.register_module()
class MultiTaskMix(ConcatMix):
    """Named data sets, one after the other, with the proportions in which a :class:`TaskSampler` draws them.

    Args:
        datasets: Data sets or their configs by name (usually the task's).
        ratios: A positive number per name; only their ratios matter. None: the lengths, so that every record comes
            equally often.

    Attributes:
        names: Names of the members, in order.
        ratios: Shares by name, as given.

    Raises:
        ConfigError: No data set, or names and ratios do not fit.
    """

    def __init__(self, datasets: Mapping[str, Any], ratios: Mapping[str, float] | None = None) -> None:
        super().__init__(list(datasets.values()))
        self.names = tuple(datasets)
        if ratios is None:
            ratios = {name: len(dataset) for name, dataset in zip(self.names, self.datasets)}
        for name in ratios:
            if name not in self.names:
                raise ConfigError(f"`ratios` names {name!r}, which is no data set{suggest(name, self.names)}")
        for name in self.names:
            if not ratios.get(name, 0) > 0:
                raise ConfigError(
                    f"`ratios` needs a positive number for {name!r}; leave the data set out instead"
                )
        self.ratios = {name: float(ratios[name]) for name in self.names}

    @property
    def starts(self) -> tuple[int, ...]:
        """Index of each member's first record."""
        return (0, *self._ends[:-1])

    def name_of(self, index: int) -> str:
        """Name of the member that a record belongs to."""
        return self.names[self._locate(index)[0]]

    def report(self) -> dict[str, Any]:
        """Reports of the members, by name."""
        members = {name: dataset.report() for name, dataset in zip(self.names, self.datasets)}
        return {"records": len(self), "members": members}


@DATA_SAMPLERS.register_module()
class TaskSampler(EpochSampler):
    """Indices into a :class:`MultiTaskMix` in the proportions of its ``ratios``.

    Every member is an endless stream of shuffled passes over its records, and an epoch continues where the last one
    stopped: no record comes twice before all of its data set came once. The order is a function of (``seed``, epoch,
    number of processes, batch size) alone; a resumed run goes on in it (see
    :class:`~flmm_detseg.engine.training.loop.ResumableTrainLoop`). Processes get disjoint parts of it. Needs
    ``batch_sampler=dict(type=TaskBatchSampler)`` in the data loader.

    * ``mode="one_task"``: all samples of a batch are of one member, and **all processes take the same member in the
      same step**, so that all run the same heads; ratios count steps. With gradient accumulation, one update sees
      several members.
    * ``mode="mixed"``: every batch holds samples of every member, and **all processes hold equally many of each in the
      same step**; ratios count samples. Where a member's share of a batch is no whole number, its samples per batch
      change between the two nearest ones from step to step, so that the ratios hold in an epoch.

    Args:
        dataset: A MultiTaskMix.
        mode: ``"one_task"`` or ``"mixed"``.
        epoch_length: Samples per epoch, of all processes; None: the records of all members. Rounded up to whole steps.
        shuffle: False keeps the order inside a member, and alternates between the members evenly.
        seed: Equal in all processes; None: drawn and shared.

    Raises:
        ConfigError: The data set is of another kind, a member gets no place in an epoch, or (``mixed``) less than one
            in a batch.
    """

    def __init__(
        self,
        dataset: MultiTaskMix,
        mode: str = "one_task",
        epoch_length: int | None = None,
        shuffle: bool = True,
        seed: int | None = None,
    ) -> None:
        super().__init__(dataset, shuffle=shuffle, seed=seed)
        if not isinstance(dataset, MultiTaskMix):
            raise ConfigError(f"TaskSampler needs a MultiTaskMix, got a {type(dataset).__name__}")
        if mode not in MODES:
            raise ConfigError(f"`mode` of TaskSampler is {mode!r}; allowed: {', '.join(MODES)}")
        if epoch_length is not None and epoch_length < 1:
            raise ConfigError(
                f"`epoch_length` of TaskSampler is {epoch_length}; it must be at least 1, or None"
            )
        self.mode, self.epoch_length = mode, epoch_length or len(dataset)
        self._batch_size: int | None = None

    def set_batch_size(self, batch_size: int) -> None:
        """Called by :class:`TaskBatchSampler`: samples of one process in one step. Fixes the length of an epoch."""
        self._batch_size = batch_size
        self.num_steps = -(-self.epoch_length // (batch_size * self.world_size))
        self.num_samples = self.num_steps * batch_size
        self.total_size = self.num_samples * self.world_size
        shares = np.asarray(list(self.dataset.ratios.values()))
        shares = shares / shares.sum()
        if self.mode == "mixed":
            self._check_batch(shares)
            self._counts = rounded(shares * batch_size, self.num_steps)
            return
        steps = proportional(shares.tolist(), self.num_steps)
        for name, count in zip(self.dataset.names, steps):
            if count == 0:
                raise ConfigError(
                    f"`ratios` of {name!r} gives it none of the {self.num_steps} places of an epoch; raise it, or "
                    "`epoch_length`"
                )
        self._counts = np.repeat(np.eye(len(steps), dtype=np.int64) * batch_size, steps, axis=0)

    def _check_batch(self, shares: np.ndarray) -> None:
        rarest = int(shares.argmin())
        if shares[rarest] * self._batch_size < 1 - 1e-9:
            name, needed = self.dataset.names[rarest], math.ceil(1 / shares[rarest] - 1e-9)
            raise ConfigError(
                f"TaskSampler(mode='mixed') puts every member into every batch, but the ratio of {name!r} gives it "
                f"{shares[rarest] * self._batch_size:.2g} of the {self._batch_size} samples of a process's batch; use "
                f"`batch_size` {needed} or more, raise the ratio, or use mode='one_task'"
            )

    def __len__(self) -> int:
        """Samples of this process in an epoch."""
        self._check_ready()
        return self.num_samples

    def _check_ready(self) -> None:
        if self._batch_size is None:
            raise ConfigError(
                "TaskSampler forms whole batches: add `batch_sampler=dict(type=TaskBatchSampler)` to the data loader"
            )

    def __iter__(self) -> Iterator[int]:
        self._check_ready()
        start, self._start = self._start, 0
        return islice(iter(self._plan()[:, self.rank].reshape(-1).tolist()), start, None)

    def _plan(self) -> np.ndarray:
        """Indices of the current epoch, ``[steps, processes, batch size]``."""
        kinds = np.arange(len(self.dataset.names))
        step = np.stack([np.repeat(kinds, counts) for counts in self._counts[self._order()]])
        members = np.repeat(step[:, None], self.world_size, axis=1)
        plan = np.empty_like(members)
        for member, start in enumerate(self.dataset.starts):
            places = members == member
            seed = (self.seed, 1 + member) if self.shuffle else None
            length = len(self.dataset.datasets[member])
            plan[places] = start + member_stretch(length, int(places.sum()), self.epoch, seed)
        return plan

    def _order(self) -> np.ndarray:
        """Order of the rows of ``_counts`` in the current epoch."""
        if self.shuffle:
            return np.random.default_rng((self.seed, 0, self.epoch)).permutation(self.num_steps)
        if self.mode == "mixed":
            return np.arange(self.num_steps)
        owner = self._counts.argmax(1)  # rows of a member stand together
        place = np.concatenate([(np.arange(n) + 0.5) / n for n in np.bincount(owner)])
        return np.lexsort((owner, place))


def rounded(quotas: np.ndarray, num_steps: int) -> np.ndarray:
    """Rounds quotas up or down, step by step, so that they hold in every step's sum and over all steps.

    Args:
        quotas: float ``[M]``, the sum is a whole number.
        num_steps: S.

    Returns:
        int64 ``[S, M]``: each entry is the quota rounded down or up, each row has the quotas' sum, each column S times
        its quota, up to less than 1 either way.
    """
    ends = np.concatenate([[0.0], np.cumsum(quotas)])
    ends[-1] = round(ends[-1])
    offsets = (np.arange(num_steps) + 0.5) / num_steps  # systematic sampling with every offset once
    return np.diff(np.floor(ends + offsets[:, None]), axis=1).astype(np.int64)


@DATA_SAMPLERS.register_module()
class TaskBatchSampler(Sampler[list[int]]):
    """Batches of a :class:`TaskSampler`: ``batch_sampler=dict(type=TaskBatchSampler)`` in the data loader's config.

    Args:
        sampler: The TaskSampler (given by MMEngine).
        batch_size: Samples of one process in one step (given by MMEngine).

    Raises:
        ConfigError: The sampler is of another kind.
    """

    def __init__(self, sampler: TaskSampler, batch_size: int) -> None:
        if not isinstance(sampler, TaskSampler):
            raise ConfigError(f"TaskBatchSampler needs a TaskSampler, got a {type(sampler).__name__}")
        self.sampler, self.batch_size = sampler, batch_size
        sampler.set_batch_size(batch_size)

    def __len__(self) -> int:
        """Batches of this process in an epoch."""
        return -(-len(self.sampler) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        indices = iter(self.sampler)
        while batch := list(islice(indices, self.batch_size)):
            yield batch
