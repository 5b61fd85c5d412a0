"""Weights of a foreign model folder, file by file: what the headers say first, values when they are needed."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from flmm_detseg.errors import CheckpointError

_SAFETENSORS = ".safetensors"
# What a folder's weights may be called, the first that is there counts; an index names several files.
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_FILES = ("model.safetensors", "pytorch_model.bin")
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class StoredTensor:
    """What the header of a file says of a tensor.

    Attributes:
        file: Where it is.
        shape: Its shape.
        dtype: As stored.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class WeightFolder:
    """Tensors of a folder by name, and what is wrong with its files.

    Attributes:
        tensors: In the order of the files.
        problems: A sentence for each file or name that cannot be read.
    """

    tensors: dict[str, StoredTensor]
    problems: tuple[str, ...]

    @property
    def files(self) -> list[Path]:
        """Files with tensors, each once."""
        return list(dict.fromkeys(tensor.file for tensor in self.tensors.values()))

    def read(self, file: Path, names: Container[str]) -> Iterator[tuple[str, Tensor]]:
        """Reads tensors of one file; nothing of the others is in memory.

        Args:
            file: One of :attr:`files`.
            names: Which.

        Yields:
            Name and tensor, on the CPU, contiguous, not sharing memory with another.
        """
        wanted = [name for name, tensor in self.tensors.items() if tensor.file == file and name in names]
        if file.suffix == _SAFETENSORS:
            with safe_open(file, "pt") as content:
                for name in wanted:
                    yield name, content.get_tensor(name)
            return
        tensors = _load(file)
        for name in wanted:
            yield name, tensors[name].detach().clone(memory_format=torch.contiguous_format)


def weight_folder(folder: Path) -> WeightFolder:
    """Reads the headers of a folder's weights; no code of a file is run.

    Args:
        folder: With ``model.safetensors`` or ``pytorch_model.bin``, or several files of one kind and their index.

    Returns:
        Tensors and problems; without a file of weights that is the only problem.
    """
    index = next((folder / name for name in _INDICES if (folder / name).is_file()), None)
    if index is not None:
        return _indexed(folder, index)
    single = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if single is None:
        return WeightFolder({}, (f"no weights ({', '.join((*_FILES, *_INDICES))})",))
    try:
        return WeightFolder(_header(single), ())
    except CheckpointError as error:
        return WeightFolder({}, (str(error),))


def _indexed(folder: Path, index: Path) -> WeightFolder:
    try:
        places: Any = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        listed = {str(name): str(file) for name, file in places.items()}
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        return WeightFolder({}, (f"{index.name} is damaged ({type(error).__name__}: {error})",))
    tensors: dict[str, StoredTensor] = {}
    problems = []
    for name in dict.fromkeys(listed.values()):
        file, own = folder / name, [key for key, place in listed.items() if place == name]
        if Path(name).name != name:
            problems.append(f"{index.name} names {name!r}, which is not in the folder")
        elif not file.is_file():
            problems.append(f"{name} is missing ({len(own)} tensors)")
        else:
            try:
                found = _header(file)
            except CheckpointError as error:
                problems.append(str(error))
                continue
            problems += [
                f"{key} is not in {name}, where {index.name} has it" for key in own if key not in found
            ]
            problems += [f"{key} is in {name}, but not in {index.name}" for key in found if key not in listed]
            tensors.update({key: found[key] for key in own if key in found})
    return WeightFolder(tensors, tuple(problems))


def _header(file: Path) -> dict[str, StoredTensor]:
    """Raises CheckpointError for a file that is damaged, or that more than tensors are in."""
    if file.suffix != _SAFETENSORS:
        return {
            name: StoredTensor(file, tuple(value.shape), value.dtype) for name, value in _load(file).items()
        }
    try:
        found = {}
        with safe_open(file, "pt") as content:
            for name in content.keys():  # noqa: SIM118  # no mapping
                part = content.get_slice(name)
                dtype = _DTYPES.get(part.get_dtype())
                if dtype is None:
                    raise CheckpointError(
                        f"{file.name}: {name} has the dtype {part.get_dtype()}, no weight's"
                    )
                found[name] = StoredTensor(file, tuple(part.get_shape()), dtype)
        return found
    except CheckpointError:
        raise
    except Exception as error:  # damaged bytes raise anything
        raise CheckpointError(f"{file.name} cannot be read, it is damaged ({error})") from error


def _load(file: Path) -> Mapping[str, Tensor]:
    """A torch file's tensors; in the newer format they stay on the disk until they are read."""
    try:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler of damaged bytes raises anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{file.name} cannot be read as plain tensors, it is damaged or holds code ({reason})"
        ) from error
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{file.name} holds other objects than tensors")
    return content
