"""The pixels of a mask that stands in a text."""

from __future__ import annotations

import numpy as np

from flmm_detseg.errors import DataError
from flmm_detseg.language.items import MaskItem
from flmm_detseg.language.polygons import polygons_to_mask


def draw_mask(item: MaskItem, image_size: tuple[int, int]) -> np.ndarray:
    """Draws polygons or run lengths.

    Args:
        item: Not one that refers to a mask token.
        image_size: ``(H, W)``.

    Returns:
        bool ``[H, W]``.

    Raises:
        DataError: The mask is that of a token: a head draws it.
    """
    if item.runs is not None:
        return item.runs.draw(image_size)
    if item.polygons is None:
        raise DataError(f"the mask of {item.label!r} is that of mask token {item.seg_index}: a head draws it")
    return polygons_to_mask(item.polygons, image_size)
