"""A SAM as it was published, of whichever kind it is."""

from __future__ import annotations

import json
from pathlib import Path

from flmm_detseg.errors import ConfigError
from flmm_detseg.refiners.base import Refiner
from flmm_detseg.refiners.sam import SAMRefiner
from flmm_detseg.refiners.sam2 import SAM2Refiner
from flmm_detseg.refiners.sam_build import CONFIG_NAME, VARIANTS
from flmm_detseg.utils.paths import find, is_file

_PUBLISHED = [name for name in VARIANTS if name.startswith("vit_")]


def load_refiner(checkpoint: str) -> Refiner:
    """Loads a SAM that refines masks by mask and box; it takes no text, which only training would make.

    Args:
        checkpoint: A file of segment-anything whose name says its variant (``sam_vit_l_0b3195.pth``), a folder that
            :func:`~flmm_detseg.refiners.save_sam` wrote, or a SAM 2.1 in hub layout (a folder, or a hub name such as
            ``facebook/sam2.1-hiera-large``).

    Returns:
        The refiner.

    Raises:
        ConfigError: No such model, or one of another kind; a file's name does not say its variant.
        CheckpointError: The weights are absent, damaged, or do not fit.
    """
    path = find(checkpoint)
    if is_file(path) or path.suffix in (".pth", ".safetensors"):
        variant = next((name for name in _PUBLISHED if name in path.name), None)
        if variant is None:
            raise ConfigError(
                f"{path}: the name of a SAM file has to say its variant ({', '.join(_PUBLISHED)}), as "
                "sam_vit_l_0b3195.pth does; rename it, or build SAMRefiner.from_pretrained(variant, checkpoint)"
            )
        return SAMRefiner.from_pretrained(variant, checkpoint, use_text=False)
    if _is_sam(path / CONFIG_NAME):
        return SAMRefiner.from_pretrained(checkpoint=checkpoint, use_text=False)
    return SAM2Refiner.from_pretrained(checkpoint=checkpoint, use_text=False)


def _is_sam(config: Path) -> bool:
    """Whether a folder's config is of segment-anything; what cannot be read is left to SAM 2, whose errors say why."""
    try:
        fields = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(fields, dict) and fields.get("library") == "segment-anything"
