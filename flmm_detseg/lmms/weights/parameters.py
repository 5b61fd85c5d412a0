"""What is trained, what it costs, and what full fine-tuning would: a report for logs and ablation tables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from flmm_detseg.lmms.added.added_tokens import is_added
from flmm_detseg.lmms.base import LMMAdapter
from flmm_detseg.lmms.lora.layers import lora_group_of

_GIB = 2**30


@dataclass(frozen=True)
class GroupParameters:
    """Parameters of one part of a model.

    Attributes:
        name: ``"lmm.vision"``, ``"lmm.llm"``, ``"lmm.projector"``, ``"lmm.other"`` for the LMM's own weights,
            ``"lmm.added_tokens"``, ``"lmm.parts.NAME"``, ``"lora.GROUP"``, ``"heads.NAME"``, ``"parts.NAME"``, or
            the first part of the name for everything else.
        total: Number of values.
        trainable: Those with ``requires_grad``.
        share: ``trainable`` as a share of all trainable values of the model, in [0, 1].
        bytes: Of all its values, as stored.
    """

    name: str
    total: int
    trainable: int
    share: float
    bytes: int


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes that training keeps besides activations, on one device without sharding.

    Attributes:
        weights: All parameters, as stored.
        gradients: One per trainable value.
        optimizer: AdamW's two moments per trainable value, and a float32 copy of 16-bit ones.
    """

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """Sum of the three."""
        return self.weights + self.gradients + self.optimizer


@dataclass(frozen=True)
class ParameterReport:
    """Counts per group, and memory against full fine-tuning of the same model.

    Attributes:
        groups: In the order of the model.
        total: Number of values.
        trainable: Those with ``requires_grad``.
        memory: As the model is set up.
        full_memory: With every parameter trainable.
    """

    groups: tuple[GroupParameters, ...]
    total: int
    trainable: int
    memory: TrainingMemory
    full_memory: TrainingMemory

    @property
    def trainable_share(self) -> float:
        """Trainable values as a share of all, in [0, 1]."""
        return self.trainable / max(self.total, 1)

    def as_dict(self) -> dict[str, Any]:
        """Plain containers, for JSON."""
        memory, full = ({**asdict(item), "total": item.total} for item in (self.memory, self.full_memory))
        return {
            "total": self.total,
            "trainable": self.trainable,
            "trainable_share": self.trainable_share,
            "groups": {group.name: _without_name(group) for group in self.groups},
            "memory_bytes": memory,
            "full_finetuning_memory_bytes": full,
        }


def parameter_report(
    model: nn.Module,
    *,
    weight_dtype: torch.dtype | None = None,
    gradient_dtype: torch.dtype | None = None,
    state_dtype: torch.dtype = torch.float32,
) -> ParameterReport:
    """Counts a model's parameters and estimates what training it keeps in memory.

    Args:
        model: A ``GroundingLMM``, an adapter or any module; may be on the meta device.
        weight_dtype: Of all weights while training (DeepSpeed's bf16 casts all of them); None for as they are.
        gradient_dtype: Of gradients; None for the weight's.
        state_dtype: Of AdamW's moments.

    Returns:
        Counts per group and in total; bytes of weights, gradients and optimizer for what is trained now, and if
        everything were.
    """
    parts = _lmm_parts(model)
    counts: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        entry = counts.setdefault(_group_name(name, parts), [0, 0, 0])
        entry[0] += parameter.numel()
        entry[1] += parameter.numel() * parameter.requires_grad
        entry[2] += parameter.numel() * (weight_dtype or parameter.dtype).itemsize
    trainable = sum(entry[1] for entry in counts.values())
    groups = tuple(
        GroupParameters(name, total, trained, trained / max(trainable, 1), size)
        for name, (total, trained, size) in counts.items()
    )
    dtypes = (weight_dtype, gradient_dtype, state_dtype)
    everything = list(model.parameters())
    return ParameterReport(
        groups=groups,
        total=sum(group.total for group in groups),
        trainable=trainable,
        memory=_memory(everything, [p for p in everything if p.requires_grad], *dtypes),
        full_memory=_memory(everything, everything, *dtypes),
    )


def format_report(report: ParameterReport) -> str:
    """The report as a text table."""
    rows = [("part", "values", "trainable", "share", "MiB")]
    for group in report.groups:
        share = f"{group.share:.1%}" if group.trainable else "-"
        size = f"{group.bytes / 2**20:.1f}"
        rows.append((group.name, f"{group.total:,}", f"{group.trainable:,}", share, size))
    size = f"{report.memory.weights / 2**20:.1f}"
    rows.append(
        ("all", f"{report.total:,}", f"{report.trainable:,}", f"{report.trainable_share:.2%} of all", size)
    )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    for label, memory in (("training", report.memory), ("full fine-tuning", report.full_memory)):
        lines.append(
            f"memory for {label}, without activations: {memory.total / _GIB:.3f} GiB "
            f"(weights {memory.weights / _GIB:.3f}, gradients {memory.gradients / _GIB:.3f}, "
            f"AdamW {memory.optimizer / _GIB:.3f})"
        )
    return "\n".join(lines)


def _memory(
    parameters: Iterable[nn.Parameter],
    trained: Iterable[nn.Parameter],
    weight_dtype: torch.dtype | None,
    gradient_dtype: torch.dtype | None,
    state_dtype: torch.dtype,
) -> TrainingMemory:
    gradients = optimizer = 0
    for parameter in trained:
        dtype = weight_dtype or parameter.dtype
        gradients += parameter.numel() * (gradient_dtype or dtype).itemsize
        copy = torch.float32.itemsize if dtype.itemsize < torch.float32.itemsize else 0
        optimizer += parameter.numel() * (2 * state_dtype.itemsize + copy)
    weights = sum(p.numel() * (weight_dtype or p.dtype).itemsize for p in parameters)
    return TrainingMemory(weights=weights, gradients=gradients, optimizer=optimizer)


def _lmm_parts(model: nn.Module) -> dict[str, str]:
    """Prefix of parameter names -> group, for every LMM in the model; longer prefixes first."""
    parts: dict[str, str] = {}
    for name, child in model.named_modules():
        if isinstance(child, LMMAdapter):
            root = f"{name}." if name else ""
            for part, paths in child.part_prefixes.items():
                parts |= {f"{root}model.{path}.": f"lmm.{part}" for path in paths}
            parts[f"{root}model."] = "lmm.other"
            parts |= {f"{root}parts.{part}.": f"lmm.parts.{part}" for part in child.added_parts}
    return dict(sorted(parts.items(), key=lambda item: -len(item[0])))


def _group_name(name: str, parts: dict[str, str]) -> str:
    group = lora_group_of(name)
    if group is not None:
        return f"lora.{group}"
    if is_added(name):
        return "lmm.added_tokens"
    for prefix, part in parts.items():
        if name.startswith(prefix):
            return part
    head = name.split(".")
    return ".".join(head[:2]) if head[0] in ("heads", "parts") and len(head) > 2 else head[0]


def _without_name(group: GroupParameters) -> dict[str, Any]:
    return {key: value for key, value in asdict(group).items() if key != "name"}
