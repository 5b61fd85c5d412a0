"""What an instruction asks for, step by step, whatever language it is in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["detect", "segment", "answer"]


@dataclass(frozen=True)
class Step:
    """One thing asked for.

    Attributes:
        kind: ``"detect"`` (every object of the classes), ``"segment"`` (the region a phrase speaks of), ``"answer"``.
        text: Class names or phrase without article, or the question, as written.
        span: Character span of ``text`` in the instruction.
    """

    kind: Kind
    text: str
    span: tuple[int, int]


@dataclass(frozen=True)
class Instruction:
    """What was understood of an instruction.

    Attributes:
        steps: In the order of the words.
        uninterpreted: Words that belong to no step, e.g. ``"in the image"`` of "in the image, detect the cars".
            Verbs, connectives and politeness are not listed.
    """

    steps: tuple[Step, ...]
    uninterpreted: tuple[str, ...] = ()
