"""Digests of tensors that are read again only after the tensor changed."""

from __future__ import annotations

import json
import random
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

# Values of a tensor that every request compares.
_SAMPLES = 16
_facts = attrgetter("dtype", "_version", "shape")


@dataclass(frozen=True, eq=False)
class _Read:
    """A tensor as it was when it was read."""

    tensor: weakref.ref[Tensor]
    storage: StorageWeakRef
    layout: tuple[Any, ...]
    digest: str
    places: tuple[tuple[int], tuple[int], int]
    sample: Tensor

    def still(self, tensor: Tensor) -> bool:
        # Addresses alone are not enough: a new tensor, or new memory of the old one (`parameter.data = ...`), may be at
        # the address of a freed one.
        return self.tensor() is tensor and self.layout == _layout(tensor) and not self.storage.expired()


class TensorDigests:
    """Digest per tensor, for as long as the tensor lives. Callers lock.

    A change is seen by the tensor's version counter, a replaced tensor or replaced memory by weak references. Tensors
    made in inference mode have no counter, so they are read every time. Writing through ``tensor.data`` counts nowhere:
    a few values of every tensor are compared, which shows whatever writes to all of it.
    """

    def __init__(self) -> None:
        self._known: dict[int, _Read] = {}
        self._batch: _Batch | None = None

    def of(self, tensor: Tensor) -> str:
        """Hex digest over dtype, shape and values.

        Args:
            tensor: Any, but on the meta device.

        Returns:
            32 hex digits.
        """
        return self.of_all([tensor])[0]

    def of_all(self, tensors: Sequence[Tensor]) -> list[str]:
        """:meth:`of` for each of many tensors, with one comparison of values (on a GPU: one transfer) per device.

        It takes little time when they are the tensors of the call before, and unchanged.
        """
        counted = [tensor for tensor in tensors if not tensor.is_inference()]
        digests = self._unchanged(counted)
        if len(counted) == len(tensors):
            return digests
        known = iter(digests)
        return [_digest(tensor) if tensor.is_inference() else next(known) for tensor in tensors]

    def clear(self) -> None:
        """All tensors will be read again."""
        self._known.clear()
        self._batch = None

    def _unchanged(self, tensors: list[Tensor]) -> list[str]:
        while True:
            batch, self._batch = self._batch, None
            if batch is None or not batch.still(tensors):
                batch = _Batch([self._current(tensor) for tensor in tensors])
            rewritten = batch.rewritten(tensors)
            if not rewritten:
                self._batch = batch
                return batch.digests
            for tensor in rewritten:
                self._known.pop(id(tensor), None)

    def _current(self, tensor: Tensor) -> _Read:
        known = self._known.get(id(tensor))
        return self._read(tensor) if known is None or not known.still(tensor) else known

    def _read(self, tensor: Tensor) -> _Read:
        name = id(tensor)
        # Before the values are read: a change meanwhile then causes another reading.
        layout, places = _layout(tensor), _places(tensor)
        sample = tensor.detach().as_strided(*places).clone()
        known = self._known

        def forget(_: weakref.ref[Tensor]) -> None:
            known.pop(name, None)

        storage = StorageWeakRef(tensor.untyped_storage())
        self._known[name] = _Read(
            weakref.ref(tensor, forget), storage, layout, _digest(tensor), places, sample
        )
        return self._known[name]


class _Batch:
    """Tensors that are checked together. None of them, and no memory of them, is kept alive."""

    def __init__(self, reads: list[_Read]) -> None:
        self.digests = [read.digest for read in reads]
        self._tensors = [read.tensor for read in reads]
        self._storages = [read.storage.cdata for read in reads]
        # Holds what `cdata` points to.
        self._reads = reads
        self._layouts = tuple([read.layout[column] for read in reads] for column in range(3))
        self._places = [[read.places[column] for read in reads] for column in range(3)]
        # Vectors of one dtype and stride are put together faster.
        groups: dict[tuple[Any, ...], list[int]] = {}
        for index, read in enumerate(reads):
            groups.setdefault((read.sample.device, read.sample.dtype, *read.places[:2]), []).append(index)
        self._groups = [(device, indices) for (device, *_), indices in groups.items()]
        self._samples = self._packed([read.sample for read in reads])

    def still(self, tensors: list[Tensor]) -> bool:
        """Whether these are the tensors, and no counter shows a change; :meth:`_Read.still` for all of them."""
        return (
            len(tensors) == len(self._tensors)
            and all(map(is_, tensors, [tensor() for tensor in self._tensors]))
            and _layouts(tensors) == self._layouts
            and not any(map(torch.UntypedStorage._expired, self._storages))
        )

    def rewritten(self, tensors: list[Tensor]) -> list[Tensor]:
        """Tensors whose values differ from those that were read."""
        with torch.no_grad():
            # The longest part of all: a loop in Python would take longer.
            views = list(map(torch.as_strided, tensors, *self._places))
            now = self._packed(views)
            if all(torch.equal(values, self._samples[device]) for device, values in now.items()):
                return []
            return [
                tensor
                for tensor, values, read in zip(tensors, views, self._reads, strict=True)
                if not torch.equal(_bytes(values), _bytes(read.sample))
            ]

    def _packed(self, views: list[Tensor]) -> dict[torch.device, Tensor]:
        """Bytes of all vectors, per device."""
        packed: dict[torch.device, list[Tensor]] = {}
        for device, indices in self._groups:
            row = torch.cat([views[index] for index in indices])
            packed.setdefault(device, []).append(_bytes(row))
        return {device: torch.cat(rows) for device, rows in packed.items()}


def _layouts(tensors: list[Tensor]) -> tuple[list[Any], ...]:
    """:func:`_layout` of many, by columns."""
    return list(map(_facts, tensors)), list(map(Tensor.data_ptr, tensors)), list(map(Tensor.stride, tensors))


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return _facts(tensor), tensor.data_ptr(), tensor.stride()


def _places(tensor: Tensor) -> tuple[tuple[int], tuple[int], int]:
    """Where a few values lie: size, stride and offset of a view of the tensor's memory."""
    size, stride = tensor.numel(), 1
    if not tensor.is_contiguous():
        # Along its longest side.
        longest = max(range(tensor.dim()), key=tensor.shape.__getitem__)
        size, stride = tensor.shape[longest], tensor.stride(longest)
    count = min(size, _SAMPLES)
    step = size // count if count else 1
    return (count,), (step * stride,), int(tensor.storage_offset()) + random.randrange(step) * stride


def _bytes(values: Tensor) -> Tensor:
    # As bytes, not as numbers: NaN does not equal itself.
    return values.contiguous().view(torch.uint8)


def _digest(tensor: Tensor) -> str:
    digest = blake2b(json.dumps([str(tensor.dtype), list(tensor.shape)]).encode(), digest_size=16)
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
