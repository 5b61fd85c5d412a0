"""Says what works on this machine, and what to do about each thing that does not."""

from __future__ import annotations

from flmm_detseg.doctor import add_arguments, run

__all__ = ["add_arguments", "run"]
