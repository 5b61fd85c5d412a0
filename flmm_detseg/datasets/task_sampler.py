"""Data sets of several tasks in given proportions: one task per batch, or mixed batches."""

from __future__ import annotations

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
    :class:`~flmm_detseg.engine.loop.ResumableTrainLoop`). Processes get disjoint parts of it.

    * ``mode="one_task"``: all samples of a batch are of one member, and **all processes take the same member in the
      same step**, so that all run the same heads; ratios count steps. Needs
      ``batch_sampler=dict(type=TaskBatchSampler)`` in the data loader. With gradient accumulation, one update sees
      several members.
    * ``mode="mixed"``: members are mixed inside batches; ratios count samples.

    Args:
        dataset: A MultiTaskMix.
        mode: ``"one_task"`` or ``"mixed"``.
        epoch_length: Samples per epoch, of all processes; None: the records of all members. Rounded up to whole steps
            (``mixed``: to a multiple of the number of processes).
        shuffle: False keeps the order inside a member, and the members take turns evenly.
        seed: Equal in all processes; None: drawn and shared.

    Raises:
        ConfigError: The data set is of another kind, or a member gets no place in an epoch.
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
        if mode == "mixed":
            self._plan_epochs(block=1)

    def set_batch_size(self, batch_size: int) -> None:
        """Called by :class:`TaskBatchSampler`: samples of one process in one step."""
        self._batch_size = batch_size
        if self.mode == "one_task":
            self._plan_epochs(block=batch_size)

    def _plan_epochs(self, block: int) -> None:
        """Fixes how many blocks (samples of one member in one process) of each member an epoch has."""
        self._block = block
        self.num_steps = -(-self.epoch_length // (block * self.world_size))
        self.num_samples = self.num_steps * block
        self.total_size = self.num_samples * self.world_size
        # Of steps in one_task, where all processes agree; of samples in mixed.
        self._places = self.num_steps if self.mode == "one_task" else self.total_size
        self.counts = proportional(list(self.dataset.ratios.values()), self._places)
        for name, count in zip(self.dataset.names, self.counts):
            if count == 0:
                raise ConfigError(
                    f"`ratios` of {name!r} gives it none of the {self._places} places of an epoch; raise it, or "
                    "`epoch_length`"
                )

    def __len__(self) -> int:
        """Samples of this process in an epoch."""
        self._check_ready()
        return self.num_samples

    def _check_ready(self) -> None:
        if self.mode == "one_task" and self._batch_size is None:
            raise ConfigError(
                "TaskSampler(mode='one_task') forms whole batches: add `batch_sampler=dict(type=TaskBatchSampler)` to "
                "the data loader, or use mode='mixed'"
            )

    def __iter__(self) -> Iterator[int]:
        self._check_ready()
        start, self._start = self._start, 0
        plan = self._plan().reshape(self.num_steps, self.world_size, self._block)
        return islice(iter(plan[:, self.rank].reshape(-1).tolist()), start, None)

    def _plan(self) -> np.ndarray:
        """Indices of the current epoch in order of use: step, process, place in the batch; ``[total_size]``."""
        members = self._order()
        per_place = self.total_size // self._places
        plan = np.empty((self._places, per_place), dtype=np.int64)
        for member, (start, count) in enumerate(zip(self.dataset.starts, self.counts)):
            length = len(self.dataset.datasets[member])
            seed = (self.seed, 1 + member) if self.shuffle else None
            stretch = member_stretch(length, count * per_place, self.epoch, seed)
            plan[members == member] = start + stretch.reshape(count, per_place)
        return plan.reshape(-1)

    def _order(self) -> np.ndarray:
        """Member of each place of the current epoch."""
        if self.shuffle:
            members = np.repeat(np.arange(len(self.counts)), self.counts)
            return np.random.default_rng((self.seed, 0, self.epoch)).permutation(members)
        turns = [
            ((k + 0.5) / count, member) for member, count in enumerate(self.counts) for k in range(count)
        ]
        return np.asarray([member for _, member in sorted(turns)])


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
