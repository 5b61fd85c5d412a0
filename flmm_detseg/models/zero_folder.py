"""Reads the model states of a DeepSpeed folder without running code from it.

MMEngine keeps its log history in the same file, as objects that ``torch.load(weights_only=True)`` refuses. Here
tensors are rebuilt, and every other class or function of the file becomes an inert stand-in that does nothing.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import torch
from torch import _utils as torch_utils

_REBUILD = ("_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_tensor")
_TORCH = ("Size", "device", "float16", "bfloat16", "float32", "float64", "int64", "int32", "uint8", "bool")


class Inert:
    """Stands for an object of a class that is not loaded; swallows whatever the file does to it."""

    def __new__(cls, *arguments: Any) -> Inert:
        """Accepts any construction arguments."""
        return object.__new__(cls)

    def __init__(self, *arguments: Any) -> None:
        pass

    def __call__(self, *arguments: Any) -> Inert:
        """Calls nothing."""
        return Inert()

    def __setstate__(self, state: Any) -> None:
        """Keeps nothing."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Keeps nothing."""

    def append(self, value: Any) -> None:
        """Ignores list items."""

    def extend(self, values: Any) -> None:
        """Ignores list items."""


class TensorUnpickler(pickle.Unpickler):
    """Finds torch's tensor builders and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Returns the builder of a tensor, or :class:`Inert` for anything else."""
        if module == "collections" and name == "OrderedDict":
            return OrderedDict
        if module == "torch._utils" and name in _REBUILD:
            return getattr(torch_utils, name)
        if module == "torch" and name in _TORCH:
            return getattr(torch, name)
        return Inert


def read_model_states(path: Path) -> object:
    """Loads a ``mp_rank_00_model_states.pt``.

    Args:
        path: The file.

    Returns:
        Its content on the CPU, with :class:`Inert` objects in place of everything but tensors and plain containers.
    """

    def load(file: BinaryIO, **options: Any) -> object:
        return TensorUnpickler(file, **options).load()

    # Safe although not `weights_only`: TensorUnpickler resolves no name outside the lists above.
    restricted = SimpleNamespace(Unpickler=TensorUnpickler, load=load, __name__="zero_folder")
    return torch.load(path, map_location="cpu", pickle_module=restricted, weights_only=False)
