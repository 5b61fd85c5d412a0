"""Saves and loads the trained tensors of a :class:`CachedLMM`, strictly and with a report per module."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from logging import Logger
from pathlib import Path

import torch
from mmengine.logging import print_log
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from flmm_detseg.cache.cached_lmm import CachedLMM
from flmm_detseg.compat.transformers5 import stored_names
from flmm_detseg.errors import CheckpointError
from flmm_detseg.lmms.weights.trained_layout import check_layout, layout_text

_FORMAT = "flmm-cached-lmm-1"


@dataclass(frozen=True)
class PartReport:
    """One module of a model.

    Attributes:
        name: ``"separators"``, ``"background_projector"``, ``"object_projector"``, ``"prefusion"``, or ``"llm"``,
            ``"vision"``, ``"projector"`` for the LLaVA's own (with their LoRA).
        num_tensors: Stored tensors of it.
        num_values: Numbers in them.
        sha256: First 16 hex digits over names, dtypes, shapes and bytes.
    """

    name: str
    num_tensors: int
    num_values: int
    sha256: str


def own_tensors(model: CachedLMM) -> dict[str, Tensor]:
    """Tensors that differ from the wrapped LLaVA's: its own parameters and all that are or were trained, detached
    (storage shared), by the names that files have for them.
    """
    found = {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or name in model.checkpoint_buffers or not name.startswith("model.")
    }
    stored = stored_names(model, list(found))
    return {stored[name]: tensor for name, tensor in found.items()}


def part_reports(model: CachedLMM, tensors: Mapping[str, Tensor] | None = None) -> list[PartReport]:
    """Reports per module, in the order of the model.

    Args:
        model: Names the modules.
        tensors: Tensors by name; None for :func:`own_tensors`.

    Returns:
        One report per module that has tensors among them.
    """
    prefixes = {f"model.{path}.": part for part, paths in model.part_prefixes.items() for path in paths}
    groups: dict[str, list[tuple[str, Tensor]]] = {}
    for name, tensor in (own_tensors(model) if tensors is None else tensors).items():
        part = next(
            (part for prefix, part in prefixes.items() if name.startswith(prefix)), name.split(".")[0]
        )
        groups.setdefault(part, []).append((name, tensor))
    return [
        PartReport(part, len(found), sum(tensor.numel() for _, tensor in found), _checksum(found))
        for part, found in groups.items()
    ]


def format_part_reports(reports: list[PartReport]) -> str:
    """A line per module, for logs."""
    return "\n".join(
        f"{item.name:<22} {item.num_tensors:>5} tensors {item.num_values:>12} values  sha256 {item.sha256}"
        for item in reports
    )


def log_part_reports(model: nn.Module, logger: Logger | str = "current") -> None:
    """Logs a line per module of a :class:`CachedLMM` in a model: what was loaded, or training begins with.

    Args:
        model: Where none is in it, nothing is logged.
        logger: As for MMEngine's ``print_log``.
    """
    for part in model.modules():
        if isinstance(part, CachedLMM):
            reports = format_part_reports(part_reports(part))
            print_log(f"Parts that differ from the unmodified LLaVA:\n{reports}", logger)


def save_own(model: CachedLMM, path: str | Path) -> list[PartReport]:
    """Writes :func:`own_tensors` and the layout they were trained for (safetensors)."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in own_tensors(model).items()}
    save_file(tensors, path, metadata={"format": _FORMAT, "layout": layout_text(model.trained_layout)})
    return part_reports(model, tensors)


@torch.no_grad()
def load_own(model: CachedLMM, path: str | Path) -> list[PartReport]:
    """Loads what :func:`save_own` wrote; nothing is changed unless everything fits.

    Args:
        model: Built with the same settings.
        path: The file.

    Returns:
        Reports of the loaded tensors, as they are in the model now.

    Raises:
        CheckpointError: The file cannot be read, was trained for another layout, or has missing, unexpected or wrongly
            shaped tensors; lists them.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            given = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(f"{path} holds no parts of a CachedLMM; save_own writes them")
    check_layout(model.trained_layout, metadata.get("layout"), str(path))
    wanted = own_tensors(model)
    problems = [
        *(f"missing: {name}" for name in wanted if name not in given),
        *(f"unexpected: {name}" for name in given if name not in wanted),
        *(
            f"of shape {tuple(given[name].shape)} instead of {tuple(wanted[name].shape)}: {name}"
            for name in wanted
            if name in given and given[name].shape != wanted[name].shape
        ),
    ]
    if problems:
        raise CheckpointError(
            f"{path} does not fit the model; {len(problems)} problems: {'; '.join(problems[:5])}"
        )
    for name, tensor in given.items():
        wanted[name].copy_(tensor)
    return part_reports(model)


def _checksum(tensors: list[tuple[str, Tensor]]) -> str:
    digest = sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
