"""Which object a query about places means, by clear margins: nobody who looks could answer otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from flmm_detseg.datasets.tinyworld.relations import (
    RELATION_MARGIN,
    holds,
    possible,
)
from flmm_detseg.datasets.tinyworld.scene import Scene, SceneObject

AREA_MARGIN = 1.25
# Between two things: their centres are that far apart, and that close to the line's ends nothing is "between" them.
_LEAST_LINE = 40.0
_ENDS = 0.2
# Least pixels of the line on the object, and to every other one.
_LEAST_MET = 6
_LEAST_MISSED = 5.0


def first_by(
    objects: Sequence[SceneObject], value: Callable[[SceneObject], float], margin: float
) -> SceneObject | None:
    """The object with the smallest value, None unless it is smaller by the margin."""
    ranked = sorted(objects, key=value)
    if len(ranked) < 2 or value(ranked[1]) - value(ranked[0]) < margin:
        return None
    return ranked[0]


def by_area(objects: Sequence[SceneObject], largest: bool) -> SceneObject | None:
    """The object with the most (or the fewest) visible pixels, None unless by :data:`AREA_MARGIN`."""
    sign = -1.0 if largest else 1.0
    return first_by(objects, lambda obj: sign * float(np.log(obj.mask.sum())), float(np.log(AREA_MARGIN)))


def by_distance(
    objects: Sequence[SceneObject], point_xy: tuple[float, float], nearest: bool
) -> SceneObject | None:
    """The object whose centre is nearest to a point (or farthest from it), None without a clear margin."""
    sign = 1.0 if nearest else -1.0
    return first_by(objects, lambda obj: sign * distance(obj.centre_xy, point_xy), RELATION_MARGIN)


def distance(first_xy: tuple[float, float], second_xy: tuple[float, float]) -> float:
    """Pixels between two points."""
    return float(np.hypot(first_xy[0] - second_xy[0], first_xy[1] - second_xy[1]))


def corner_points(image_size: tuple[int, int]) -> dict[str, tuple[float, float]]:
    """Name of every corner of an image of ``(H, W)``, and its point ``(x, y)`` in pixels."""
    height, width = image_size
    return {
        f"{row} {col}": (x, y)
        for row, y in (("top", 0.0), ("bottom", float(height)))
        for col, x in (("left", 0.0), ("right", float(width)))
    }


def related(
    objects: Sequence[SceneObject], relation: str, anchor: SceneObject
) -> tuple[SceneObject, ...] | None:
    """The objects that are ``left of``, ... another one, itself left out; None if one of them is a borderline case."""
    others = [obj for obj in objects if obj is not anchor]
    found = tuple(obj for obj in others if holds(obj, relation, anchor))
    return found if not any(possible(obj, relation, anchor) for obj in others if obj not in found) else None


def between(scene: Scene, first: SceneObject, second: SceneObject) -> tuple[SceneObject, ...] | None:
    """The objects on the line between the centres of two others; None if that is unclear.

    Args:
        scene: The scene.
        first: One end.
        second: The other one.

    Returns:
        Objects that the middle part of the line crosses, in order of their ids; None if the ends are close to each
        other, or an object is touched at its edge or only near an end.
    """
    length = distance(first.centre_xy, second.centre_xy)
    if length < _LEAST_LINE:
        return None
    start, way = np.array(first.centre_xy), np.array(second.centre_xy) - np.array(first.centre_xy)
    # Pixels of the line, one a pixel of its length.
    shares = np.linspace(0.0, 1.0, int(length))
    cols, rows = (start + shares[:, None] * way).astype(int).T
    found = []
    for obj in scene.objects:
        if obj is first or obj is second:
            continue
        middle = (np.array(obj.centre_xy) - start) @ way / length**2
        if obj.mask[rows, cols].sum() >= _LEAST_MET and _ENDS < middle < 1 - _ENDS:
            found.append(obj)
            continue
        y, x = np.nonzero(obj.mask)
        points = np.stack([x + 0.5, y + 0.5], axis=1) - start
        nearest = np.clip(points @ way / length**2, 0.0, 1.0)
        if np.linalg.norm(points - nearest[:, None] * way, axis=1).min() < _LEAST_MISSED:
            return None
    return tuple(found)
