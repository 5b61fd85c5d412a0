"""The Python API: ask a grounding LMM about an image, get masks and boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flmm_detseg.utils.lazy import lazy_names

__all__ = [
    "AttentionMaps",
    "AttentionReader",
    "Chat",
    "ChatTurn",
    "Grounder",
    "GroundingResult",
    "InstructionResult",
    "Instructor",
    "Outline",
    "Outliner",
]

if TYPE_CHECKING:
    from flmm_detseg.inference.attention_maps import AttentionMaps
    from flmm_detseg.inference.attention_reader import AttentionReader
    from flmm_detseg.inference.chat import Chat, ChatTurn
    from flmm_detseg.inference.grounder import Grounder
    from flmm_detseg.inference.instructor import InstructionResult, Instructor
    from flmm_detseg.inference.outline import Outline, Outliner
    from flmm_detseg.inference.result import GroundingResult


__getattr__, __dir__ = lazy_names(__name__)
