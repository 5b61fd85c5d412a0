"""Outlines of masks along the edges of their pixels."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np


class Outlines(NamedTuple):
    """Closed polygons whose even-odd filling is the mask, pixel for pixel.

    Attributes:
        outer: Around each connected part (8-neighbourhood), int32 ``[N, 2]`` as (x, y), pixel edges: x from 0 to W.
        holes: Around each hole.
    """

    outer: list[np.ndarray]
    holes: list[np.ndarray]


def pixel_outlines(mask: np.ndarray) -> Outlines:
    """Walks around the parts and holes of a mask.

    Points are one step apart or equal; :func:`corners` leaves those where the direction changes.

    Args:
        mask: bool ``[H, W]``.

    Returns:
        Outlines; none for an empty mask.
    """
    if not mask.any():
        return Outlines([], [])
    # OpenCV walks along pixel centres. Doubled, pixel x becomes 2x and 2x + 1, which halve (upwards) to its two edges.
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    window = mask[top : top + height, left : left + width].astype(np.uint8)
    doubled = window.repeat(2, axis=0).repeat(2, axis=1)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    corner = np.array([left, top], dtype=np.int32)
    found = Outlines([], [])
    for contour, parent in zip(contours, hierarchy.reshape(-1, 4)[:, 3], strict=True):
        (found.outer if parent < 0 else found.holes).append((contour[:, 0] + 1) // 2 + corner)
    return found


def corners(outline: np.ndarray) -> np.ndarray:
    """The points of an outline where its direction changes.

    Args:
        outline: Of :func:`pixel_outlines`, ``[N, 2]``.

    Returns:
        ``[M, 2]``, at least 4 points, in the same order.
    """
    points = outline[(outline != np.roll(outline, 1, axis=0)).any(axis=1)]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    kept: np.ndarray = points[turns | ((before * after).sum(axis=1) < 0)]
    return kept
