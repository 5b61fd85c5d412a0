"""The assembly of LMM and heads, which are built from config here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flmm_detseg.utils.lazy import lazy_names

if TYPE_CHECKING:
    from flmm_detseg.models.balancer import (
        FixedWeighting,
        GradNormWeighting,
        TaskBalancer,
        UncertaintyWeighting,
    )
    from flmm_detseg.models.checkpoint import load_checkpoint
    from flmm_detseg.models.from_config import model_from_config, read_config
    from flmm_detseg.models.grounding_lmm import GroundingLMM

__all__ = [
    "FixedWeighting",
    "GradNormWeighting",
    "GroundingLMM",
    "TaskBalancer",
    "UncertaintyWeighting",
    "load_checkpoint",
    "model_from_config",
    "read_config",
]

__getattr__, __dir__ = lazy_names(__name__)
