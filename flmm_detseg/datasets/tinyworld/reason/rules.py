"""Rules that need no reasoning: what the reasoning set must not be solved by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from flmm_detseg.datasets.tinyworld.reason.geometry import distance
from flmm_detseg.datasets.tinyworld.scene import COLOURS, KINDS, Scene, SceneObject
from flmm_detseg.datasets.tinyworld.word_list import PLURALS

Rule = Callable[[Scene, str], Sequence[SceneObject]]


def largest_object(scene: Scene, text: str) -> Sequence[SceneObject]:
    """Always the object with the most visible pixels."""
    return [max(scene.objects, key=lambda obj: int(obj.mask.sum()))]


def central_object(scene: Scene, text: str) -> Sequence[SceneObject]:
    """Always the object whose centre is nearest to that of the image."""
    height, width = scene.image.shape[:2]
    return [min(scene.objects, key=lambda obj: distance(obj.centre_xy, (width / 2, height / 2)))]


def any_word(scene: Scene, text: str) -> Sequence[SceneObject]:
    """All objects whose kind or colour occurs in the text."""
    words = set(text.split())
    return [o for o in scene.objects if words & {o.kind, PLURALS[o.kind], o.colour}]


def all_words(scene: Scene, text: str) -> Sequence[SceneObject]:
    """All objects of a kind and of a colour that occur in the text, where it says kinds, and colours, at all."""
    words = set(text.split())
    kinds = [kind for kind in KINDS if words & {kind, PLURALS[kind]}]
    colours = [colour for colour in COLOURS if colour in words]
    if not kinds and not colours:
        return []
    return [o for o in scene.objects if o.kind in (kinds or KINDS) and o.colour in (colours or COLOURS)]


def nothing(scene: Scene, text: str) -> Sequence[SceneObject]:
    """Always that there is no such thing."""
    return []


RULES: dict[str, Rule] = {
    "the largest object": largest_object,
    "the object nearest to the centre": central_object,
    "all objects whose kind or colour is named": any_word,
    "the objects that fit all kinds and colours named": all_words,
    "nothing": nothing,
}


def union(scene: Scene, objects: Sequence[SceneObject]) -> np.ndarray:
    """One mask of several objects, bool ``[H, W]``."""
    return np.any([np.zeros(scene.image.shape[:2], bool), *(obj.mask for obj in objects)], axis=0)


def iou(predicted: np.ndarray, wanted: np.ndarray) -> float:
    """Intersection over union of two masks, bool ``[H, W]``; 1 where both are empty."""
    either = int((predicted | wanted).sum())
    return float((predicted & wanted).sum() / either) if either else 1.0
