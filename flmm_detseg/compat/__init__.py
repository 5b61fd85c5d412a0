"""Stand-ins that let the pinned packages work without their compiled parts."""

from flmm_detseg.compat.mmcv_ext import install, is_stand_in

__all__ = ["install", "is_stand_in"]
