"""The former place of mmdet's detector; configs that name it keep working."""

from flmm_detseg.cache.regions.mmdet_detector import MMDetDetector

__all__ = ["MMDetDetector"]
