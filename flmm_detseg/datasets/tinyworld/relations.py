"""What is true of a scene: uniqueness of descriptions, places and spatial relations. The language builds on it."""

from __future__ import annotations

from collections.abc import Iterable

from flmm_detseg.datasets.tinyworld.scene import Scene, SceneObject

ATTRIBUTES: tuple[str, ...] = ("size", "texture", "colour")
RELATIONS: tuple[str, ...] = ("left of", "right of", "above", "below")
# Least margin in pixels of a relation or an extreme place that is stated (of a 112-pixel image).
RELATION_MARGIN = 10.0
# Closer than this a relation is not denied either: neither true nor false.
RELATION_DOUBT = 3.0

Description = tuple[tuple[str, str], ...]  # (attribute, value) pairs in speaking order, kind last


def describe(obj: SceneObject, attributes: Iterable[str], kind: bool = True) -> Description:
    """The description of an object by the named attributes, in speaking order."""
    wanted = set(attributes)
    pairs = [(name, getattr(obj, name)) for name in ATTRIBUTES if name in wanted]
    return tuple(pairs + [("kind", obj.kind)] if kind else pairs)


def matches(obj: SceneObject, description: Description) -> bool:
    """Whether every stated attribute is true of the object."""
    return all(getattr(obj, name) == value for name, value in description)


def matching(scene: Scene, description: Description) -> list[SceneObject]:
    """Objects of the scene the description fits."""
    return [obj for obj in scene.objects if matches(obj, description)]


def cell_of(obj: SceneObject, image_size: tuple[int, int]) -> str | None:
    """Place of an object's centre in a 3 x 3 grid in words; None when it is within 2 % of a border between cells."""
    rows, cols = ("top", "", "bottom"), ("left", "", "right")
    parts = []
    for value, side, names in (
        (obj.centre_xy[1], image_size[0], rows),
        (obj.centre_xy[0], image_size[1], cols),
    ):
        position = value / side * 3
        if min(abs(position - 1), abs(position - 2)) < 0.06:
            return None
        parts.append(names[min(2, int(position))])
    return " ".join(part for part in parts if part) or "centre"


def relation_gap(first: SceneObject, relation: str, second: SceneObject) -> float:
    """Pixels by which ``first`` is on the stated side of ``second`` (centres); negative on the other side."""
    dx = first.centre_xy[0] - second.centre_xy[0]
    dy = first.centre_xy[1] - second.centre_xy[1]
    return {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[relation]


def holds(first: SceneObject, relation: str, second: SceneObject) -> bool:
    """Whether a relation may be stated: by a clear margin."""
    return relation_gap(first, relation, second) >= RELATION_MARGIN


def possible(first: SceneObject, relation: str, second: SceneObject) -> bool:
    """Whether a relation is not clearly false, so that a reader might accept it."""
    return relation_gap(first, relation, second) > -RELATION_DOUBT


def extreme(objects: list[SceneObject], side: str) -> SceneObject | None:
    """The object furthest to ``left | right | top | bottom`` by a clear margin, None without one."""
    axis, sign = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}[side]
    ranked = sorted(objects, key=lambda obj: sign * obj.centre_xy[axis])
    if len(ranked) < 2 or sign * (ranked[1].centre_xy[axis] - ranked[0].centre_xy[axis]) < RELATION_MARGIN:
        return None
    return ranked[0]
