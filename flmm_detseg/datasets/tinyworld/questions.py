"""Questions with short answers about a scene, and boxes as words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flmm_detseg.datasets.tinyworld.language import speak, unique_descriptions
from flmm_detseg.datasets.tinyworld.relations import (
    RELATION_MARGIN,
    RELATIONS,
    Description,
    cell_of,
    describe,
    matching,
    relation_gap,
)
from flmm_detseg.datasets.tinyworld.scene import COLOURS, KINDS, Scene, SceneObject, scene_rng
from flmm_detseg.datasets.tinyworld.word_list import COUNT_WORDS, PLURALS

_ASK = 3
_GRID = 1000
_STEP = 10
QUESTION_KINDS: tuple[str, ...] = ("colour", "kind", "presence", "count", "position", "box", "comparison")


@dataclass(frozen=True)
class Question:
    """A question, its one right answer and its kind (:data:`QUESTION_KINDS`)."""

    text: str
    answer: str
    kind: str


def format_box(box_xyxy: tuple[float, float, float, float], image_size: tuple[int, int]) -> str:
    """Four words ``x0 y0 x1 y1`` on the 1000-grid in steps of 10 (corners are clipped to 990)."""
    height, width = image_size
    scaled = np.asarray(box_xyxy, dtype=np.float64) / np.asarray([width, height, width, height]) * _GRID
    steps = np.clip(np.rint(scaled / _STEP), 0, _GRID // _STEP - 1).astype(int) * _STEP
    return " ".join(f"{value:03d}" for value in steps)


def parse_box(text: str, image_size: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """Inverse of :func:`format_box`: pixels of a text of exactly four coordinate words, None for anything else."""
    words = text.split()
    if len(words) != 4 or not all(len(w) == 3 and w.isdigit() for w in words):
        return None
    height, width = image_size
    x0, y0, x1, y1 = (int(w) / _GRID for w in words)
    return x0 * width, y0 * height, x1 * width, y1 * height


def make_questions(scene: Scene, seed: int, per_kind: int = 1) -> list[Question]:
    """Up to ``per_kind`` questions of every kind the scene allows.

    Args:
        scene: The scene.
        seed: Seed of the world.
        per_kind: Questions of each kind at most.

    Returns:
        Questions, no text twice.
    """
    rng = scene_rng(seed, scene.scene_id, scene.split, _ASK)
    makers = {
        "colour": _colour,
        "kind": _kind,
        "presence": _presence,
        "count": _count,
        "position": _position,
        "box": _box,
        "comparison": _comparison,
    }
    out: dict[str, Question] = {}
    for kind, make in makers.items():
        for _ in range(per_kind):
            pair = make(scene, rng)
            if pair is not None:
                out.setdefault(pair[0], Question(pair[0], pair[1], kind))
    return list(out.values())


def _pick_unique(
    scene: Scene, rng: np.random.Generator, without: tuple[str, ...] = ()
) -> tuple[SceneObject, Description] | None:
    """A random object and a random description (not using some attributes) that fits it alone."""
    for i in rng.permutation(len(scene.objects)):
        obj = scene.objects[int(i)]
        names = [d for d in unique_descriptions(scene, obj) if not {n for n, _ in d} & set(without)]
        if names:
            # Short names are the common ones in speech.
            return obj, names[min(int(rng.integers(len(names))), int(rng.integers(len(names))))]
    return None


def _colour(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    found = _pick_unique(scene, rng, without=("colour",))
    return found and (f"what colour is the {speak(found[1])} ?", found[0].colour)


def _kind(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    size = scene.image.shape[:2]
    options = []
    for obj in scene.objects:
        description = describe(obj, ("colour",), kind=False)
        if len(matching(scene, description)) == 1:
            options.append((f"what kind of object is {obj.colour} ?", obj.kind))
        cell = cell_of(obj, size)
        if cell is not None and not any(
            cell_of(o, size) in (cell, None) for o in scene.objects if o is not obj
        ):
            place = "in the centre" if cell == "centre" else f"at the {cell}"
            options.append((f"what kind of object is {place} ?", obj.kind))
    return options[int(rng.integers(len(options)))] if options else None


def _presence(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    if not scene.objects:
        return None
    obj = scene.objects[int(rng.integers(len(scene.objects)))]
    with_colour = rng.random() < 0.7
    if rng.random() < 0.5:
        words = speak(describe(obj, ("colour",) if with_colour else ()))
        return f"is there {article(words)} {words} ?", "yes"
    for _ in range(20):
        kind = str(rng.choice(KINDS)) if rng.random() < 0.5 or not with_colour else obj.kind
        colour = str(rng.choice(list(COLOURS))) if rng.random() < 0.5 else obj.colour
        wrong: Description = (("colour", colour), ("kind", kind)) if with_colour else (("kind", kind),)
        if not matching(scene, wrong):
            words = speak(wrong)
            return f"is there {article(words)} {words} ?", "no"
    return None


def presence_question(phrase: str) -> str:
    """The question of whether there is what a referring expression names, as :func:`make_questions` asks it.

    Args:
        phrase: ``"the red ring"``, ``"a ring"``, ``"the ring left of the star"``.

    Returns:
        ``"is there a red ring ?"``; of expressions by a relation ``"is the ring left of the star ?"``.
    """
    if any(f" {relation} " in phrase for relation in RELATIONS):
        return f"is {phrase} ?"
    words = phrase.split(maxsplit=1)[1] if phrase.split()[0] in ("the", "a", "an") else phrase
    return f"is there {article(words)} {words} ?"


def article(words: str) -> str:
    """The indefinite article that goes before words."""
    return "an" if words[0] in "aeiou" else "a"


def _count(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    mode = rng.random()
    kinds = sorted({o.kind for o in scene.objects})
    colours = sorted({o.colour for o in scene.objects})
    if mode < 0.25:
        return "how many objects are there ?", COUNT_WORDS[len(scene.objects)]
    if mode < 0.65:
        kind = str(rng.choice(kinds if kinds and rng.random() < 0.8 else KINDS))
        count = sum(o.kind == kind for o in scene.objects)
        return f"how many {PLURALS[kind]} are there ?", COUNT_WORDS[count]
    colour = str(rng.choice(colours if colours and rng.random() < 0.8 else list(COLOURS)))
    count = sum(o.colour == colour for o in scene.objects)
    return f"how many {colour} objects are there ?", COUNT_WORDS[count]


def _position(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    for _ in range(4):
        found = _pick_unique(scene, rng)
        cell = found and cell_of(found[0], scene.image.shape[:2])
        if found and cell:
            return f"where is the {speak(found[1])} ?", cell
    return None


def _box(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    found = _pick_unique(scene, rng)
    size = scene.image.shape[:2]
    return found and (f"what is the box of the {speak(found[1])} ?", format_box(found[0].box_xyxy, size))


def _comparison(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    named = [(o, names[0]) for o in scene.objects if (names := unique_descriptions(scene, o))]
    if len(named) < 2:
        return None
    i, j = (int(k) for k in rng.permutation(len(named))[:2])
    (first, first_name), (second, second_name) = named[i], named[j]
    if first.size != second.size and rng.random() < 0.5:
        word = str(rng.choice(["larger", "smaller"]))
        answer = first_name if (first.size == "large") == (word == "larger") else second_name
        return (
            f"which is {word} , the {speak(first_name)} or the {speak(second_name)} ?",
            f"the {speak(answer)}",
        )
    relation = str(rng.choice(RELATIONS))
    gap = relation_gap(first, relation, second)
    if abs(gap) < RELATION_MARGIN:
        return None
    return f"is the {speak(first_name)} {relation} the {speak(second_name)} ?", "yes" if gap > 0 else "no"
