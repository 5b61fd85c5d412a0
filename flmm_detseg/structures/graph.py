"""A trained part as a function of tensors alone, as it is exported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn


class Port(NamedTuple):
    """An input or output of a graph.

    Attributes:
        name: Of the tensor.
        shape: A number where the size is fixed, a name where any size does.
        about: What it holds, and for inputs how it is prepared.
    """

    name: str
    shape: tuple[int | str, ...]
    about: str


@dataclass(frozen=True)
class Graph:
    """A part of a head.

    Attributes:
        name: Of the part, ``"mask"``.
        about: What it computes.
        module: Takes :attr:`examples` by position; gives a tensor, or a tuple of them.
        inputs: In order.
        examples: A tensor for each input.
        others: The same for other sizes, where there are any.
        outputs: In order.
        settings: Figures for what comes before and after, JSON-ready.
    """

    name: str
    about: str
    module: nn.Module
    inputs: tuple[Port, ...]
    examples: tuple[Tensor, ...]
    outputs: tuple[Port, ...]
    others: tuple[tuple[Tensor, ...], ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
