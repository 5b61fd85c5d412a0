"""Referring expressions and narratives of a scene. Same scene and seed, same words."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from flmm_detseg.datasets.tinyworld.relations import (
    ATTRIBUTES,
    RELATIONS,
    Description,
    cell_of,
    describe,
    extreme,
    holds,
    matching,
    possible,
)
from flmm_detseg.datasets.tinyworld.scene import Scene, SceneObject, scene_rng
from flmm_detseg.datasets.tinyworld.word_list import COUNT_WORDS, PLURALS

_REFER, _NARRATE = 1, 2
_MAX_PER_KIND = 2
MIN_SENTENCES = 3


@dataclass(frozen=True)
class ReferringExpression:
    """A sentence that fits exactly one object of its scene; ``kind``: attributes, location or relation."""

    object_id: int
    text: str
    kind: str


@dataclass(frozen=True)
class GroundedPhrase:
    """A phrase of a text (half-open character spans) and the objects or stuff regions it names."""

    spans: tuple[tuple[int, int], ...]
    object_ids: tuple[int, ...]
    region_ids: tuple[int, ...]
    is_thing: bool
    is_plural: bool


@dataclass(frozen=True)
class GroundedText:
    """A text whose phrases are grounded."""

    text: str
    phrases: tuple[GroundedPhrase, ...]


def speak(description: Description) -> str:
    """Words of a description without article, "object" where the kind is not said."""
    words = [value for _, value in description]
    return " ".join(words if description and description[-1][0] == "kind" else [*words, "object"])


def unique_descriptions(scene: Scene, obj: SceneObject) -> list[Description]:
    """Shortest-first descriptions by attributes that fit this object only."""
    found: list[Description] = []
    for count in range(len(ATTRIBUTES) + 1):
        for names in combinations(ATTRIBUTES, count):
            description = describe(obj, names)
            if len(matching(scene, description)) == 1:
                found.append(description)
    return found


def referring_expressions(scene: Scene, seed: int) -> list[ReferringExpression]:
    """At least three unambiguous sentences for every object that allows them; other objects are left out.

    Args:
        scene: The scene.
        seed: Seed of the world (the choice among true sentences is drawn from it).

    Returns:
        Sentences of the three kinds, object by object.
    """
    rng = scene_rng(seed, scene.scene_id, scene.split, _REFER)
    out: list[ReferringExpression] = []
    for obj in scene.objects:
        mine: list[ReferringExpression] = []
        makers = (("attributes", _by_attributes), ("location", by_location), ("relation", _by_relation))
        for kind, make in makers:
            texts = sorted(set(make(scene, obj)))
            chosen = rng.permutation(len(texts))[:_MAX_PER_KIND]
            mine += [ReferringExpression(obj.object_id, texts[int(i)], kind) for i in chosen]
        if len(mine) >= MIN_SENTENCES:
            out += mine
    return out


def _by_attributes(scene: Scene, obj: SceneObject) -> list[str]:
    texts = [f"the {speak(d)}" for d in unique_descriptions(scene, obj)]
    for names in (("colour",), ("size", "colour")):
        description = describe(obj, names, kind=False)
        if len(matching(scene, description)) == 1:
            texts.append(f"the {speak(description)}")
    return texts


def by_location(scene: Scene, obj: SceneObject) -> list[str]:
    """Expressions that fit this object alone by where it is, by clear margins."""
    texts = []
    size = scene.image.shape[:2]
    for names in ((), ("colour",)):
        description = describe(obj, names)
        rivals = matching(scene, description)
        for side in ("left", "right", "top", "bottom"):
            if extreme(rivals, side) is obj:
                texts.append(f"the {side} {speak(description)}")
        cell = cell_of(obj, size)
        if cell is not None and not any(cell_of(r, size) in (cell, None) for r in rivals if r is not obj):
            place = "in the centre" if cell == "centre" else f"at the {cell}"
            texts.append(f"the {speak(description)} {place}")
    for side in ("left", "right", "top", "bottom"):
        if extreme(list(scene.objects), side) is obj:
            texts.append(f"the {side} object")
    return texts


def _by_relation(scene: Scene, obj: SceneObject) -> list[str]:
    texts = []
    for anchor in scene.objects:
        names = unique_descriptions(scene, anchor)
        if anchor is obj or not names:
            continue
        for head in (describe(obj, ()), describe(obj, ("colour",))):
            rivals = [r for r in matching(scene, head) if r is not obj and r is not anchor]
            for relation in RELATIONS:
                if holds(obj, relation, anchor) and not any(possible(r, relation, anchor) for r in rivals):
                    texts.append(f"the {speak(head)} {relation} the {speak(names[0])}")
    return texts


class _Writer:
    """Builds a text word by word and remembers the spans of its phrases."""

    def __init__(self) -> None:
        self.text = ""
        self.phrases: list[GroundedPhrase] = []

    def say(self, words: str) -> tuple[int, int]:
        start = len(self.text) + (1 if self.text else 0)
        self.text = f"{self.text} {words}" if self.text else words
        return start, len(self.text)

    def name(self, words: str, objects: list[SceneObject]) -> None:
        span = self.say(words)
        ids = tuple(o.object_id for o in objects)
        self.phrases.append(GroundedPhrase((span,), ids, (), True, len(objects) > 1))

    def name_stuff(self, words: str, region_id: int) -> None:
        self.phrases.append(GroundedPhrase((self.say(words),), (), (region_id,), False, False))


def narrate(scene: Scene, seed: int) -> GroundedText:
    """A caption in which every naming phrase is grounded: up to five objects, plurals, and the background.

    Args:
        scene: The scene.
        seed: Seed of the world.

    Returns:
        The text and its phrases in order of appearance.
    """
    rng = scene_rng(seed, scene.scene_id, scene.split, _NARRATE)
    writer = _Writer()
    size = scene.image.shape[:2]
    mentioned: set[int] = set()
    groups: dict[str, list[SceneObject]] = {}
    for obj in scene.objects:
        groups.setdefault(obj.kind, []).append(obj)
    for kind, members in sorted(groups.items()):
        if len(members) >= 2 and rng.random() < 0.5:
            writer.say("there are")
            writer.name(f"{COUNT_WORDS[len(members)]} {PLURALS[kind]}", members)
            writer.say(".")
            mentioned.update(o.object_id for o in members)
    rest = [o for o in scene.objects if o.object_id not in mentioned]
    for i in rng.permutation(len(rest))[:5]:
        obj = rest[int(i)]
        writer.name(f"a {speak(_narrated(obj, rng))}", [obj])
        anchors = [
            (other, relation, names[0])
            for other in scene.objects
            if other is not obj and (names := unique_descriptions(scene, other))
            for relation in RELATIONS
            if holds(obj, relation, other)
        ]
        cell = cell_of(obj, size)
        if anchors and (cell is None or rng.random() < 0.35):
            other, relation, words = anchors[int(rng.integers(len(anchors)))]
            writer.say(f"is {relation}")
            writer.name(f"the {speak(words)}", [other])
        elif cell is not None:
            writer.say("is in the centre" if cell == "centre" else f"is at the {cell}")
        else:
            writer.say("is in the image")
        writer.say(".")
    writer.say("the background is")
    for number, region in enumerate(scene.stuff):
        if number:
            writer.say("and")
        writer.name_stuff(region.name, region.region_id)
    writer.say(".")
    return GroundedText(writer.text, tuple(writer.phrases))


def _narrated(obj: SceneObject, rng: np.random.Generator) -> Description:
    names = ["colour"]
    if rng.random() < 0.6:
        names.append("size")
    if obj.texture != "plain" and rng.random() < 0.7:
        names.append("texture")
    return describe(obj, names)
