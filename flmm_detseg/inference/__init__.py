"""The Python API for people: ask a grounding LMM about an image, get masks and boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["Grounder", "GroundingResult", "InstructionResult", "Instructor"]

if TYPE_CHECKING:
    from flmm_detseg.inference.grounder import Grounder
    from flmm_detseg.inference.instructor import InstructionResult, Instructor
    from flmm_detseg.inference.result import GroundingResult


def __getattr__(name: str) -> object:
    """Imports on first use: the command line (its doctor above all) must start without torch."""
    if name == "Grounder":
        from flmm_detseg.inference.grounder import Grounder

        return Grounder
    if name == "GroundingResult":
        from flmm_detseg.inference.result import GroundingResult

        return GroundingResult
    if name in ("InstructionResult", "Instructor"):
        from flmm_detseg.inference import instructor

        return getattr(instructor, name)
    raise AttributeError(f"module 'flmm_detseg.inference' has no attribute {name!r}")
