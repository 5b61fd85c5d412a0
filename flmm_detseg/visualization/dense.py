"""Pictures of detections and of label maps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from flmm_detseg.visualization.canvas import outline
from flmm_detseg.visualization.overlay import draw_grounding

_UNKNOWN = 255


def draw_detections(
    image: np.ndarray,
    boxes_xyxy: np.ndarray,
    names: Sequence[str],
    scores: Sequence[float] | np.ndarray | None = None,
    masks: np.ndarray | None = None,
) -> np.ndarray:
    """Objects as boxes (with their masks where there are any) and a legend.

    Args:
        image: RGB, uint8, ``[H, W, 3]``.
        boxes_xyxy: ``[N, 4]`` half-open pixel boxes.
        names: N class names.
        scores: N scores to print beside the names.
        masks: bool ``[N, H, W]``.

    Returns:
        RGB uint8 ``[H', W', 3]``.
    """
    size = image.shape[:2]
    if masks is None:
        found = [outline(box_mask(box, size), 1) for box in boxes_xyxy]
        masks = np.stack(found) if found else np.zeros((0, *size), dtype=bool)
    return draw_grounding(image, masks, names, scores, boxes_xyxy)


def draw_semantic(image: np.ndarray, semantic: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """The classes of a label map in colours, and a legend of those present.

    Args:
        image: RGB, uint8, ``[H, W, 3]``.
        semantic: Integer ``[H, W]``, 255 unknown (left as it is).
        names: Class names by index.

    Returns:
        RGB uint8 ``[H', W', 3]``.
    """
    values = [int(value) for value in np.unique(semantic) if value != _UNKNOWN]
    masks = [semantic == value for value in values]
    stacked = np.stack(masks) if masks else np.zeros((0, *image.shape[:2]), dtype=bool)
    return draw_grounding(image, stacked, [names[value] for value in values])


def box_mask(box_xyxy: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Pixels of a box, bool ``[H, W]``."""
    x0, y0, x1, y1 = (float(value) for value in box_xyxy)
    mask = np.zeros(image_size, dtype=bool)
    mask[max(int(y0), 0) : math.ceil(y1), max(int(x0), 0) : math.ceil(x1)] = True
    return mask
