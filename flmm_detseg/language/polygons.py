"""Binary masks as polygons with a bounded number of points, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.language.coordinates import dequantise_points, quantise_points
from flmm_detseg.language.items import Polygon
from flmm_detseg.ops.outlines import pixel_outlines

_EPSILON_GROWTH = 1.4


@dataclass(frozen=True)
class MaskPolygons:
    """Polygons of a mask and their error.

    Attributes:
        polygons: Parts, largest first; empty when nothing of the mask is wide enough for canonical coordinates.
        num_dropped_parts: Connected parts (8-neighbourhood) beyond the cap or too thin.
        num_filled_holes: Holes; polygons cannot have any.
        iou: Of the drawn polygons with the mask: also what simplification and rounding cost; 1.0 for an empty mask.
    """

    polygons: tuple[Polygon, ...]
    num_dropped_parts: int
    num_filled_holes: int
    iou: float


def mask_to_polygons(mask: np.ndarray, max_points: int = 24, max_parts: int = 3) -> MaskPolygons:
    """Outlines a mask along its pixel edges, simplified (Douglas-Peucker) until each part has few enough points.

    Args:
        mask: bool ``[H, W]``.
        max_points: Points of each part at most, at least 4.
        max_parts: Parts kept, the largest.

    Returns:
        Canonical polygons and their loss.

    Raises:
        ConfigError: ``max_points`` below 4 or ``max_parts`` below 1.
        DataError: The mask is not two-dimensional.
    """
    if max_points < 4 or max_parts < 1:
        raise ConfigError(
            f"max_points must be at least 4 and max_parts at least 1, got {max_points}, {max_parts}"
        )
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise DataError(f"a mask must be [H, W], got shape {mask.shape}")
    mask = mask.astype(bool)
    if not mask.any():
        return MaskPolygons((), 0, 0, 1.0)
    image_size = (mask.shape[0], mask.shape[1])
    outer, holes = pixel_outlines(mask)
    outlines = [outline[:, None] for outline in outer]  # OpenCV's layout
    outlines.sort(key=cv2.contourArea, reverse=True)
    candidates = [_simplify(outline, max_points, image_size) for outline in outlines[:max_parts]]
    polygons = tuple(polygon for polygon in candidates if polygon is not None)
    drawn = polygons_to_mask(polygons, image_size)
    iou = float((drawn & mask).sum() / (drawn | mask).sum())
    return MaskPolygons(polygons, len(outlines) - len(polygons), len(holes), iou)


def _simplify(outline: np.ndarray, max_points: int, image_size: tuple[int, int]) -> Polygon | None:
    """Canonical polygon of at most ``max_points`` points; None if it has no area left."""
    epsilon, points = 0.5, outline
    while True:
        simple = cv2.approxPolyDP(outline, epsilon, True)
        if len(simple) < 3:
            x, y, width, height = cv2.boundingRect(
                points
            )  # counts pixels: one more than the distance of the edges
            right, bottom = x + width - 1, y + height - 1
            simple = np.array([[x, y], [right, y], [right, bottom], [x, bottom]])
        if len(simple) <= max_points:
            break
        epsilon *= _EPSILON_GROWTH
    bins = quantise_points(simple.reshape(-1, 2), image_size)
    bins = bins[(bins != np.roll(bins, 1, axis=0)).any(axis=1)]
    if len(bins) < 3 or cv2.contourArea(bins.astype(np.int32)) == 0:
        return None
    return tuple((int(x), int(y)) for x, y in bins)


def polygons_to_mask(polygons: Sequence[Polygon], image_size: tuple[int, int]) -> np.ndarray:
    """Draws canonical polygons: a pixel belongs to a part when its centre lies inside (even-odd); parts are united.

    Args:
        polygons: Parts in canonical coordinates.
        image_size: ``(H, W)``.

    Returns:
        bool ``[H, W]``.
    """
    height, width = image_size
    mask = np.zeros((height, width), dtype=bool)
    centres_y = np.arange(height) + 0.5
    for polygon in polygons:
        points = dequantise_points(np.array(polygon), image_size)
        crossings = np.zeros((height, width + 1), dtype=bool)
        for (x1, y1), (x2, y2) in zip(points, np.roll(points, -1, axis=0)):
            rows = np.flatnonzero((centres_y > min(y1, y2)) & (centres_y <= max(y1, y2)))
            if len(rows):
                x = x1 + (centres_y[rows] - y1) / (y2 - y1) * (x2 - x1)
                # The first pixel whose centre lies right of the edge.
                crossings[rows, np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)] ^= True
        mask |= np.logical_xor.accumulate(crossings, axis=1)[:, :width]
    return mask
