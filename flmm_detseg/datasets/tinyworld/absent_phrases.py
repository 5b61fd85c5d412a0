"""Phrases of a scene of which some name nothing in it, and why: an absent kind, attribute, relation or place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from flmm_detseg.datasets.tinyworld.language import (
    ReferringExpression,
    narrate,
    referring_expressions,
    speak,
    unique_descriptions,
)
from flmm_detseg.datasets.tinyworld.relations import (
    ATTRIBUTES,
    RELATION_MARGIN,
    RELATIONS,
    Description,
    describe,
    matching,
    relation_gap,
)
from flmm_detseg.datasets.tinyworld.scene import (
    COLOURS,
    KINDS,
    SIZES,
    TEXTURES,
    Scene,
    SceneObject,
    scene_rng,
)

_PRESENCE = 7
ABSENCES: tuple[str, ...] = ("kind", "attribute", "relation", "place")
# Share of a caption's objects that are exchanged for something absent.
_CHANGED = 0.4
_VALUES = {"size": SIZES, "texture": TEXTURES, "colour": tuple(COLOURS), "kind": KINDS}
_CELLS = tuple(
    f"{row} {col}".strip() or "centre" for row in ("top", "", "bottom") for col in ("left", "", "right")
)


@dataclass(frozen=True)
class PhraseInScene:
    """A phrase of a text.

    Attributes:
        span: Half-open characters.
        object_ids: What it names.
        region_ids: The same, of the background.
        absent: Why it names nothing, of :data:`ABSENCES`; None where it names something.
    """

    span: tuple[int, int]
    object_ids: tuple[int, ...] = ()
    region_ids: tuple[int, ...] = ()
    absent: str | None = None


@dataclass(frozen=True)
class PresenceText:
    """A text, its phrases, and its form: ``attributes``, ``place``, ``relation`` or ``caption``."""

    text: str
    phrases: tuple[PhraseInScene, ...]
    form: str


def presence_texts(scene: Scene, seed: int) -> list[PresenceText]:
    """Up to eight texts of a scene: true and false expressions of each form, word for word of one pattern, and its
    caption with some things exchanged for absent ones.

    Args:
        scene: The scene.
        seed: Seed of the world.

    Returns:
        Expressions of one phrase each, at most one of every form that is true and one of every absence, then the
        caption where something in it was exchanged.
    """
    rng = scene_rng(seed, scene.scene_id, scene.split, _PRESENCE)
    found: list[PresenceText] = []
    for form, spoken in (("attributes", "attributes"), ("place", "location"), ("relation", "relation")):
        true = [e for e in referring_expressions(scene, seed) if e.kind == spoken]
        if true:
            found.append(_true_text(true[int(rng.integers(len(true)))], form, rng))
    makers = {"kind": _absent_kinds, "attribute": _absent_attributes, "relation": _absent_relations}
    for absent, make in {**makers, "place": _absent_places}.items():
        texts = sorted(set(make(scene)))
        if texts:
            form = absent if absent in ("relation", "place") else "attributes"
            words = _with_article(texts[int(rng.integers(len(texts)))], form, rng)
            found.append(PresenceText(f"{words} .", (PhraseInScene((0, len(words)), absent=absent),), form))
    caption = _changed_caption(scene, seed, rng)
    return found if caption is None else [*found, caption]


def _true_text(expression: ReferringExpression, form: str, rng: np.random.Generator) -> PresenceText:
    words = _with_article(expression.text, form, rng)
    phrase = PhraseInScene((0, len(words)), object_ids=(expression.object_id,))
    return PresenceText(f"{words} .", (phrase,), form)


def _with_article(words: str, form: str, rng: np.random.Generator) -> str:
    """One description in four begins with "a", as captions do."""
    if form != "attributes" or rng.random() < 0.75:
        return words
    return _indefinite(words.removeprefix("the "))


def _indefinite(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _absent_kinds(scene: Scene) -> list[str]:
    """Kinds that the scene lacks, with attributes that one of its objects has."""
    absent = [kind for kind in KINDS if not any(o.kind == kind for o in scene.objects)]
    return [
        f"the {speak((*describe(obj, names, kind=False), ('kind', kind)))}"
        for obj in scene.objects
        for names in _subsets()
        for kind in absent
    ]


def _absent_attributes(scene: Scene) -> list[str]:
    """Kinds that are there (or "object") with one attribute that none of them has."""
    return [f"the {speak(d)}" for obj in scene.objects for d in _wrong_attributes(scene, obj)]


def _wrong_attributes(scene: Scene, obj: SceneObject) -> Iterator[Description]:
    for names in _subsets():
        for changed in names:
            for value in _VALUES[changed]:
                right = describe(obj, names)
                wrong = tuple((n, value if n == changed else v) for n, v in right)
                if not matching(scene, wrong) and _is_clear(scene, wrong, changed):
                    yield wrong


def _is_clear(scene: Scene, wrong: Description, changed: str) -> bool:
    """Textures of small objects are a few pixels: only those of large ones are denied."""
    rest = tuple(pair for pair in wrong if pair[0] != changed)
    return changed != "texture" or all(obj.size == "large" for obj in matching(scene, rest))


def _absent_relations(scene: Scene) -> list[str]:
    """Things that are there, on the other side of each other by a clear margin."""
    texts = []
    for anchor in scene.objects:
        names = unique_descriptions(scene, anchor)
        if not names:
            continue
        for obj in scene.objects:
            for head in (describe(obj, ()), describe(obj, ("colour",))):
                others = [o for o in matching(scene, head) if o is not anchor]
                for relation in RELATIONS:
                    gaps = [relation_gap(other, relation, anchor) for other in others]
                    if gaps and max(gaps) <= -RELATION_MARGIN:
                        texts.append(f"the {speak(head)} {relation} the {speak(names[0])}")
    return texts


def _absent_places(scene: Scene) -> list[str]:
    """Things that are there, in cells of a 3 x 3 grid from whose edges their centres are clearly away."""
    texts = []
    for obj in scene.objects:
        for names in ((), ("colour",)):
            description = describe(obj, names)
            fitting = matching(scene, description)
            for cell in _CELLS:
                if min(_distance(o, cell, scene.image.shape[:2]) for o in fitting) >= RELATION_MARGIN:
                    place = "in the centre" if cell == "centre" else f"at the {cell}"
                    texts.append(f"the {speak(description)} {place}")
    return texts


def _distance(obj: SceneObject, cell: str, size: tuple[int, ...]) -> float:
    """Pixels from an object's centre to a cell (the larger of both axes); 0 inside."""
    row, col = divmod(_CELLS.index(cell), 3)
    gaps = []
    for position, side, number in ((obj.centre_xy[1], size[0], row), (obj.centre_xy[0], size[1], col)):
        low, high = side * number / 3, side * (number + 1) / 3
        gaps.append(max(low - position, position - high, 0.0))
    return max(gaps)


def _changed_caption(scene: Scene, seed: int, rng: np.random.Generator) -> PresenceText | None:
    """The scene's caption, some of whose single objects are exchanged; None where none could be."""
    told = narrate(scene, seed)
    by_id = {obj.object_id: obj for obj in scene.objects}
    text, phrases, end, changed = "", [], 0, False
    for phrase in told.phrases:
        ((start, stop),) = phrase.spans
        text += told.text[end:start]
        words, absent = told.text[start:stop], None
        if len(phrase.object_ids) == 1 and rng.random() < _CHANGED:
            absent, words = _exchange(scene, by_id[phrase.object_ids[0]], words, rng)
            changed |= absent is not None
        span = (len(text), len(text) + len(words))
        text += words
        ids = ((), ()) if absent else (phrase.object_ids, phrase.region_ids)
        phrases.append(PhraseInScene(span, *ids, absent))
        end = stop
    return PresenceText(text + told.text[end:], tuple(phrases), "caption") if changed else None


def _exchange(scene: Scene, obj: SceneObject, words: str, rng: np.random.Generator) -> tuple[str | None, str]:
    """Absence and words of something in place of an object: of an absent kind or with an absent attribute."""
    named = tuple(name for name in ATTRIBUTES if getattr(obj, name) in words.split())
    absent = str(rng.choice(("kind", "attribute")))
    if absent == "kind":
        missing = [kind for kind in KINDS if not any(o.kind == kind for o in scene.objects)]
        wrong = [(*describe(obj, named, kind=False), ("kind", kind)) for kind in missing]
    else:
        wrong = [d for d in _wrong_attributes(scene, obj) if tuple(n for n, _ in d) == (*named, "kind")]
    if not wrong:
        return None, words
    return absent, _indefinite(speak(wrong[int(rng.integers(len(wrong)))]))


def _subsets() -> list[tuple[str, ...]]:
    """Attributes that a description names beside the kind: none, one or two."""
    return [names for count in range(3) for names in combinations(ATTRIBUTES, count)]
