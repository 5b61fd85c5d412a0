"""DeepSpeed folders without running code from them.

Reading weights: MMEngine keeps its log history in the file of the model states, as objects that
``torch.load(weights_only=True)`` refuses. Tensors are rebuilt, and every other class or function of the file becomes an
inert stand-in that does nothing.

Resuming: DeepSpeed reads the folder itself, with a loader that runs whatever a file holds. :func:`check_states` goes
through the files before.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import torch
from torch import _utils as torch_utils

_REBUILD = ("_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_tensor")
_TORCH = ("Size", "device", "float16", "bfloat16", "float32", "float64", "int64", "int32", "uint8", "bool")
# What DeepSpeed's own loader needs beside tensors: plain data carriers, found in what ZeRO-2 writes.
_DEEPSPEED = {
    ("deepspeed.runtime.fp16.loss_scaler", "DynamicLossScaler"),
    ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"),
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"),
    ("deepspeed.utils.tensor_fragment", "fragment_address"),
    ("__builtin__", "set"),
}
_ZIP_MAGIC = b"PK\x03\x04"


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


class StatesChecker(TensorUnpickler):
    """Goes through a pickle without building anything; refuses what could run code."""

    def find_class(self, module: str, name: str) -> Any:
        """Returns :class:`Inert` for what DeepSpeed's states consist of.

        Args:
            module: As named in the pickle.
            name: As named in the pickle.

        Returns:
            :class:`Inert`: nothing is built.

        Raises:
            UnpicklingError: For anything else.
        """
        storage = module in ("torch", "torch.storage") and name.isidentifier() and name.endswith("Storage")
        if not storage and (module, name) not in _DEEPSPEED and super().find_class(module, name) is Inert:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return Inert

    def persistent_load(self, identity: Any) -> Inert:
        """Stands for a tensor's storage, which is not read."""
        return Inert()


def check_states(path: Path) -> None:
    """Makes sure that a file of a DeepSpeed folder holds tensors, plain containers and DeepSpeed's data carriers only.

    Args:
        path: A ``*_states.pt``.

    Raises:
        UnpicklingError: It holds anything else; names it.
        RuntimeError: It is damaged.
    """
    # The reader that torch.load uses: another one might see another entry under the same name.
    _refuse_program(path)
    reader = torch._C.PyTorchFileReader(str(path))
    StatesChecker(io.BytesIO(reader.get_record("data.pkl"))).load()


def read_model_states(path: Path) -> object:
    """Loads a ``mp_rank_00_model_states.pt``.

    Args:
        path: The file.

    Returns:
        Its content on the CPU, with :class:`Inert` objects in place of everything but tensors and plain containers.

    Raises:
        UnpicklingError: It is a TorchScript program.
    """
    _refuse_program(path)

    def load(file: BinaryIO, **options: Any) -> object:
        return TensorUnpickler(file, **options).load()

    # Safe although not `weights_only`: TensorUnpickler resolves no name outside the lists above.
    restricted = SimpleNamespace(Unpickler=TensorUnpickler, load=load, __name__="zero_folder")
    return torch.load(path, map_location="cpu", pickle_module=restricted, weights_only=False)


def _refuse_program(path: Path) -> None:
    """``torch.load`` would start a TorchScript archive, whatever unpickler it is given."""
    with path.open("rb") as file:
        zipped = file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
    if not zipped:
        return
    reader = torch._C.PyTorchFileReader(str(path))
    if reader.has_record("constants.pkl"):  # type: ignore[attr-defined]  # torch's stub leaves it out
        raise pickle.UnpicklingError("a TorchScript program")
