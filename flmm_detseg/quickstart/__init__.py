"""The quickstart: one command from a fresh clone to numbers and pictures (``make quickstart``)."""

from flmm_detseg.quickstart.steps import quickstart

__all__ = ["quickstart"]
