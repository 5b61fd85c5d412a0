"""Refiners: coarse masks in, better masks out. See docs/architecture.md, section Rooms."""

from flmm_detseg.refiners.sam import MaskPrompt, SAMRefiner, TextPrompt
from flmm_detseg.refiners.sam_build import VARIANTS, SamSizes, build_sam, save_sam

__all__ = ["VARIANTS", "MaskPrompt", "SAMRefiner", "SamSizes", "TextPrompt", "build_sam", "save_sam"]
