"""From a scribble to points: what somebody drew with a brush, in a form that a SAM reads."""

from __future__ import annotations

import cv2
import numpy as np

MOST_POINTS = 8
# Points are at least so far from each other, in shares of the image's diagonal.
_SPACING = 0.04


def points_along(scribble: np.ndarray) -> list[tuple[float, float]]:
    """Points spread along a scribble, in the middle of its stroke: a broad brush overlaps what is beside the thing.

    The first lies where the stroke is broadest, each further one as far from the others as possible, until none is
    left that is far enough from them. The same scribble always gives the same points.

    Args:
        scribble: bool ``[H, W]``, not empty.

    Returns:
        1 to :data:`MOST_POINTS` places ``(x, y)``, pixels of the scribble (whole numbers).
    """
    # Beyond the edge of the picture is outside of the stroke.
    padded = np.pad(scribble.astype(np.uint8), 1)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    # The ridge: where no neighbour is deeper.
    ridge = scribble & (depth >= cv2.dilate(depth, np.ones((3, 3), np.uint8)))
    places = np.argwhere(ridge)
    chosen = [int(depth[ridge].argmax())]
    nearest = _distances(places, chosen[0])
    spacing = max(_SPACING * float(np.hypot(*scribble.shape)), 2 * float(depth.max()))
    while len(chosen) < MOST_POINTS and nearest.max() >= spacing:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, _distances(places, chosen[-1]))
    return [(float(places[index][1]), float(places[index][0])) for index in chosen]


def _distances(places: np.ndarray, index: int) -> np.ndarray:
    return np.hypot(*(places - places[index]).T)
