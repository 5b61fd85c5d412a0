"""flmm_detseg: large multimodal models that point at what they talk about."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from flmm_detseg.utils.quiet import drop_import_noise

__version__ = "0.1.0"
__all__ = ["Grounder", "GroundingResult", "__version__"]

# Here, because every command and every script imports this before anything that prints them.
drop_import_noise()

if TYPE_CHECKING:
    from flmm_detseg.inference import Grounder, GroundingResult


def __getattr__(name: str) -> object:
    """Imports the Python API on first use, so that ``import flmm_detseg`` (configs, CLI help) stays fast."""
    if name in ("Grounder", "GroundingResult"):
        return getattr(importlib.import_module("flmm_detseg.inference"), name)
    raise AttributeError(f"module 'flmm_detseg' has no attribute {name!r}")
