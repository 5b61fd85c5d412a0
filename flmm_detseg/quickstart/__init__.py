"""The quickstart: one command from a new clone to numbers and pictures (``make quickstart``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flmm_detseg.utils.lazy import lazy_names

if TYPE_CHECKING:
    from flmm_detseg.quickstart.steps import quickstart

__all__ = ["quickstart"]

__getattr__, __dir__ = lazy_names(__name__)
