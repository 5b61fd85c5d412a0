"""Digests of tensors that are read again only after the tensor changed."""

from __future__ import annotations

import json
import weakref
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


@dataclass(frozen=True, eq=False)
class _Read:
    """A tensor as it was when it was read."""

    tensor: weakref.ref[Tensor]
    storage: StorageWeakRef
    layout: tuple[Any, ...]
    digest: str

    def still(self, tensor: Tensor) -> bool:
        # Addresses alone say nothing: a new tensor, or new memory behind the old one (`parameter.data = ...`), may lie
        # where a freed one lay.
        return self.tensor() is tensor and self.layout == _layout(tensor) and not self.storage.expired()


class TensorDigests:
    """Digest per tensor, for as long as the tensor lives. Callers lock.

    A change is seen by the tensor's version counter, a replaced tensor or replaced memory by weak references. Tensors
    made in inference mode have no counter, so they are read every time. Writing through ``tensor.data`` is not seen.
    """

    def __init__(self) -> None:
        self._known: dict[int, _Read] = {}

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
        layout = _layout(tensor)
        forget = weakref.ref(tensor, lambda _, known=self._known: known.pop(name, None))
        self._known[name] = _Read(forget, StorageWeakRef(tensor.untyped_storage()), layout, _digest(tensor))
        return self._known[name].digest

    def clear(self) -> None:
        """All tensors will be read again."""
        self._known.clear()


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor._version, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _digest(tensor: Tensor) -> str:
    digest = blake2b(json.dumps([str(tensor.dtype), list(tensor.shape)]).encode(), digest_size=16)
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
