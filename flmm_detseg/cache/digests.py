"""Digests of tensors that are read again only after the tensor changed."""

from __future__ import annotations

import json
import random
import weakref
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

# Values of a tensor that every request compares.
_SAMPLES = 16
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


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
        # Addresses alone say nothing: a new tensor, or new memory behind the old one (`parameter.data = ...`), may lie
        # where a freed one lay.
        return self.tensor() is tensor and self.layout == _layout(tensor) and not self.storage.expired()

    def values(self, tensor: Tensor) -> Tensor:
        """The few values as they are now."""
        if (
            tensor.dtype != self.layout[2]
            or tensor.shape != self.layout[3]
            or tensor.stride() != self.layout[4]
        ):
            # Replaced by another thread at this moment.
            return self.sample
        return tensor.detach().as_strided(*self.places)


class TensorDigests:
    """Digest per tensor, for as long as the tensor lives. Callers lock.

    A change is seen by the tensor's version counter, a replaced tensor or replaced memory by weak references. Tensors
    made in inference mode have no counter, so they are read every time. Writing through ``tensor.data`` counts nowhere:
    :meth:`rewritten` compares a few values of every tensor, which shows whatever writes to all of it.
    """

    def __init__(self) -> None:
        self._known: dict[int, _Read] = {}
        # Per device and dtype: names, and what `rewritten` compares with; None: to be put together anew.
        self._samples: list[tuple[list[int], Tensor]] | None = None

    def of(self, tensor: Tensor) -> str:
        """Hex digest over dtype, shape and values.

        Args:
            tensor: Any, but on the meta device.
        """
        if tensor.is_inference():
            return _digest(tensor)
        name = id(tensor)
        known = self._known.get(name)
        if known is not None and known.still(tensor):
            return known.digest
        # Before the values are read: what changes meanwhile makes them be read again.
        layout, places = _layout(tensor), _places(tensor)
        sample = tensor.detach().as_strided(*places).clone()
        forget = weakref.ref(tensor, lambda _, known=self._known: known.pop(name, None))
        storage = StorageWeakRef(tensor.untyped_storage())
        self._known[name] = _Read(forget, storage, layout, _digest(tensor), places, sample)
        self._samples = None
        return self._known[name].digest

    def rewritten(self) -> bool:
        """Compares a few values of every tensor with what they were when it was read; one comparison per dtype.

        Returns:
            Whether tensors were written to that nothing else told of; they will be read again.
        """
        known = tuple(self._known.items())
        live = {name: (tensor, read) for name, read in known if (tensor := read.tensor()) is not None}
        if self._samples is None or sum(len(names) for names, _ in self._samples) != len(live):
            groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
            for name, (_, read) in live.items():
                groups.setdefault((read.sample.device, read.sample.dtype), []).append(name)
            self._samples = [
                (names, _bits(torch.cat([live[name][1].sample for name in names])))
                for names in groups.values()
            ]
        wrong: list[int] = []
        for names, wanted in self._samples:
            found = [read.values(tensor) for tensor, read in map(live.__getitem__, names)]
            if not torch.equal(_bits(torch.cat(found)), wanted):
                pairs = zip(names, found, strict=True)
                wrong += [
                    name
                    for name, values in pairs
                    if not torch.equal(_bits(values), _bits(live[name][1].sample))
                ]
        for name in wrong:
            self._known.pop(name, None)
        if wrong:
            self._samples = None
        return bool(wrong)

    def clear(self) -> None:
        """All tensors will be read again."""
        self._known.clear()
        self._samples = None


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor._version, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _places(tensor: Tensor) -> tuple[tuple[int], tuple[int], int]:
    """Where a few values lie: size, stride and offset of a view of the tensor's memory."""
    size, stride = tensor.numel(), 1
    if not tensor.is_contiguous():
        # Along its longest side.
        longest = max(range(tensor.dim()), key=tensor.shape.__getitem__)
        size, stride = tensor.shape[longest], tensor.stride(longest)
    count = min(size, _SAMPLES)
    step = size // count if count else 1
    return (count,), (step * stride,), tensor.storage_offset() + random.randrange(step) * stride


def _bits(values: Tensor) -> Tensor:
    # Not as numbers: NaN is unlike itself.
    return values.view(_BITS.get(values.element_size(), values.dtype))


def _digest(tensor: Tensor) -> str:
    digest = blake2b(json.dumps([str(tensor.dtype), list(tensor.shape)]).encode(), digest_size=16)
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
