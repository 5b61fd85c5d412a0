"""Outlines of the twelve object kinds, as polygons in the unit square."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import cv2
import numpy as np

# Every shape fills [-1, 1] x [-1, 1] (y down) as far as its form allows. A shape is a list of (filled, polygon):
# filled polygons are added, the others cut out, in order.
Shape = tuple[tuple[bool, np.ndarray], ...]
_SHIFT = 4  # fractional bits of cv2's fixed-point coordinates


def _points(*pairs: tuple[float, float]) -> np.ndarray:
    return np.array(pairs, np.float64)


def _disc(x: float, y: float, radius: float, corners: int = 32) -> np.ndarray:
    angles = [2 * math.pi * k / corners for k in range(corners)]
    return _points(*((x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles))


def _circle() -> Shape:
    return ((True, _disc(0, 0, 1)),)


def _square() -> Shape:
    return ((True, _points((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9))),)


def _triangle() -> Shape:
    return ((True, _points((0, -1), (1, 0.9), (-1, 0.9))),)


def _star() -> Shape:
    radii = (1.12, 0.5)
    angles = [math.pi * k / 5 - math.pi / 2 for k in range(10)]
    return (
        (True, _points(*((radii[k % 2] * math.cos(a), radii[k % 2] * math.sin(a)) for k, a in enumerate(angles)))),
    )


def _ring() -> Shape:
    return (True, _disc(0, 0, 1)), (False, _disc(0, 0, 0.48))


def _cross() -> Shape:
    arm = 0.34
    quarter = [(arm, -1), (arm, -arm), (1, -arm)]
    corners = [
        (sx * x, sy * y)
        for sx, sy, order in ((1, 1, 1), (1, -1, -1), (-1, -1, 1), (-1, 1, -1))
        for x, y in quarter[::order]
    ]
    return ((True, _points(*corners)),)


def _heart() -> Shape:
    curve = []
    for k in range(40):
        t = 2 * math.pi * k / 40
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        curve.append((x / 16, -(y + 2.5) / 14.5))
    return ((True, _points(*curve)),)


def _diamond() -> Shape:
    return ((True, _points((0, -1.1), (0.8, 0), (0, 1.1), (-0.8, 0))),)


def _moon() -> Shape:
    return (True, _disc(0, 0, 1.05)), (False, _disc(0.55, -0.1, 0.78))


def _arrow() -> Shape:
    return (
        (
            True,
            _points((-1, -0.34), (0.05, -0.34), (0.05, -0.95), (1.05, 0), (0.05, 0.95), (0.05, 0.34), (-1, 0.34)),
        ),
    )


def _flower() -> Shape:
    angles = [2 * math.pi * k / 5 - math.pi / 2 for k in range(5)]
    petals = tuple((True, _disc(0.62 * math.cos(a), 0.62 * math.sin(a), 0.44, 20)) for a in angles)
    return (*petals, (True, _disc(0, 0, 0.4, 20)), (False, _disc(0, 0, 0.24, 16)))


def _hourglass() -> Shape:
    return ((True, _points((-0.85, -1), (0.85, -1), (0.2, 0), (0.85, 1), (-0.85, 1), (-0.2, 0))),)


_BUILDERS: dict[str, Callable[[], Shape]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "heart": _heart,
    "diamond": _diamond,
    "moon": _moon,
    "arrow": _arrow,
    "flower": _flower,
    "hourglass": _hourglass,
}
KINDS: tuple[str, ...] = tuple(_BUILDERS)


@cache
def _shape(kind: str) -> Shape:
    return _BUILDERS[kind]()


def draw_shape(
    kind: str, canvas_size: tuple[int, int], centre_xy: tuple[float, float], radius: float, angle: float
) -> np.ndarray:
    """Draws a shape without antialiasing (the caller supersamples).

    Args:
        kind: One of ``KINDS``.
        canvas_size: ``(H, W)`` of the result.
        centre_xy: Centre in canvas pixels.
        radius: Half the width of the unit square, canvas pixels.
        angle: Rotation in radians, clockwise in the picture.

    Returns:
        ``[H, W]`` uint8, 255 inside and 0 outside.
    """
    canvas = np.zeros(canvas_size, np.uint8)
    cos, sin = radius * math.cos(angle), radius * math.sin(angle)
    turn = np.array([[cos, sin], [-sin, cos]])
    for filled, polygon in _shape(kind):
        corners = np.rint((polygon @ turn + centre_xy) * (1 << _SHIFT)).astype(np.int32)
        cv2.fillPoly(canvas, [corners], 255 if filled else 0, lineType=cv2.LINE_8, shift=_SHIFT)
    return canvas
