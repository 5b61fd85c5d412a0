"""One query about a scene, and how objects and classes of objects are named in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flmm_detseg.datasets.tinyworld.language import by_location, speak, unique_descriptions
from flmm_detseg.datasets.tinyworld.scene import Scene, SceneObject
from flmm_detseg.datasets.tinyworld.word_list import PLURALS

ABSENT: tuple[str, ...] = ("kind", "attribute", "relation")
MOST_TARGETS = 3


@dataclass(frozen=True)
class Query:
    """What is asked, without the wording.

    Attributes:
        family: Key of :data:`~flmm_detseg.datasets.tinyworld.reason.wordings.WORDINGS`.
        combination: What the family is combined with (``"odd colour"``): some are in the test split only.
        slots: Words for the places of the wordings.
        targets: The objects that answer it, at most :data:`MOST_TARGETS`; none if ``absent`` says why.
        absent: What is not there, of :data:`ABSENT`; None where there are targets.
    """

    family: str
    combination: str
    slots: Mapping[str, str]
    targets: tuple[SceneObject, ...]
    absent: str | None = None


@dataclass(frozen=True)
class ObjectClass:
    """A class of objects that a word or two name.

    Attributes:
        by: ``"object"``, or the attribute that is named.
        singular: ``"red object"``.
        plural: ``"red objects"``.
        members: Those of the scene.
    """

    by: str
    singular: str
    plural: str
    members: tuple[SceneObject, ...]


def classes(scene: Scene) -> list[ObjectClass]:
    """All objects, and those of every kind, colour, texture and size that the scene has."""
    found = [ObjectClass("object", "object", "objects", scene.objects)]
    for by in ("kind", "colour", "texture", "size"):
        for value in sorted({getattr(obj, by) for obj in scene.objects}):
            members = tuple(obj for obj in scene.objects if getattr(obj, by) == value)
            plural = PLURALS[value] if by == "kind" else f"{value} objects"
            found.append(ObjectClass(by, value if by == "kind" else f"{value} object", plural, members))
    return found


def anchor_name(scene: Scene, obj: SceneObject, without: str = "") -> str | None:
    """The shortest words that fit an object alone ("the star"), not using an attribute; None if there are none."""
    names = [d for d in unique_descriptions(scene, obj) if without not in dict(d)]
    return f"the {speak(names[0])}" if names else None


def target_name(scene: Scene, obj: SceneObject) -> str | None:
    """Words that fit an object alone, with its colour where that is possible; None if there are none."""
    names = unique_descriptions(scene, obj)
    coloured = [d for d in names if "colour" in dict(d)]
    if names:
        return f"the {speak((coloured or names)[0])}"
    return next(iter(by_location(scene, obj)), None)


class View:
    """A scene with what several families ask of it, computed once.

    Args:
        scene: The scene.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene, self.objects = scene, scene.objects
        self.classes = classes(scene)
        # Classes with a choice.
        self.several = [group for group in self.classes if len(group.members) > 1]
        self.names = {obj.object_id: target_name(scene, obj) for obj in scene.objects}
        self._anchors: dict[str, list[tuple[SceneObject, str]]] = {}

    def anchors(self, without: str = "") -> list[tuple[SceneObject, str]]:
        """Objects that can be named without an attribute, each with its shortest name."""
        if without not in self._anchors:
            named = [(obj, anchor_name(self.scene, obj, without)) for obj in self.objects]
            self._anchors[without] = [(obj, name) for obj, name in named if name is not None]
        return self._anchors[without]

    def groups(self, attribute: str) -> list[tuple[SceneObject, ...]]:
        """Objects by the values of an attribute."""
        values = sorted({getattr(obj, attribute) for obj in self.objects})
        return [tuple(obj for obj in self.objects if getattr(obj, attribute) == value) for value in values]

    def sharing(self, anchor: SceneObject, attribute: str) -> tuple[SceneObject, ...]:
        """The other objects with the anchor's value of an attribute."""
        value = getattr(anchor, attribute)
        return tuple(obj for obj in self.objects if obj is not anchor and getattr(obj, attribute) == value)


def joined(names: Sequence[str]) -> str:
    """``a``; ``a and b``; ``a , b and c``."""
    return " and ".join([" , ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
