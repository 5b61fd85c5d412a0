"""Pictures: overlays, attention heads, coarse against refined, curves, the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flmm_detseg.utils.lazy import lazy_names

if TYPE_CHECKING:
    from flmm_detseg.visualization.attention import draw_attention_heads, rank_heads
    from flmm_detseg.visualization.curves import draw_loss_curves, read_scalars
    from flmm_detseg.visualization.dense import draw_detections, draw_semantic
    from flmm_detseg.visualization.overlay import draw_grounding
    from flmm_detseg.visualization.panels import draw_comparison
    from flmm_detseg.visualization.report import Report

__all__ = [
    "Report",
    "draw_attention_heads",
    "draw_comparison",
    "draw_detections",
    "draw_grounding",
    "draw_loss_curves",
    "draw_semantic",
    "rank_heads",
    "read_scalars",
]

__getattr__, __dir__ = lazy_names(__name__)
