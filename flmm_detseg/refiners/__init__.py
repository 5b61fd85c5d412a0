"""Refiners: coarse masks in, better masks out. See docs/architecture.md, section Rooms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flmm_detseg.utils.lazy import lazy_names

if TYPE_CHECKING:
    from flmm_detseg.refiners.base import Refiner
    from flmm_detseg.refiners.prompts import MaskPrompt, TextPrompt
    from flmm_detseg.refiners.sam import SAMRefiner
    from flmm_detseg.refiners.sam2 import SAM2Refiner
    from flmm_detseg.refiners.sam2_build import SAM2_VARIANTS, build_sam2
    from flmm_detseg.refiners.sam_build import VARIANTS, SamSizes, build_sam, save_sam

__all__ = [
    "SAM2_VARIANTS",
    "VARIANTS",
    "MaskPrompt",
    "Refiner",
    "SAM2Refiner",
    "SAMRefiner",
    "SamSizes",
    "TextPrompt",
    "build_sam",
    "build_sam2",
    "save_sam",
]

__getattr__, __dir__ = lazy_names(__name__)
