"""The published LMMs of our recipes, each with the recipe that loads it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from mmengine.config import Config

from flmm_detseg.lmms.published_sizes import PAN, PUBLISHED

__all__ = ["CONFIGS", "PUBLISHED", "RECIPES", "recipe_config"]

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@cache
def recipe_config(path: Path) -> Config:
    """A recipe's config, read once."""
    return Config.fromfile(path)


RECIPES = {
    recipe_config(path).model.lmm.pretrained + (PAN if "_pan_" in path.stem else ""): path
    for path in sorted(CONFIGS.glob("*/frozen_*_refcoco_png.py"))
    if path.parent.name != "tiny"
}
