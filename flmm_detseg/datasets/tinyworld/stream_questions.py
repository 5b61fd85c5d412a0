"""Questions about frames of a stream, and whether their answer needs the background, the objects, or both.

Questions that join both groups are where reuse of a background can hide a loss: relations between something that moves
and something that stays, what stands behind an object, counts over both groups.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from flmm_detseg.datasets.tinyworld.language import speak, unique_descriptions
from flmm_detseg.datasets.tinyworld.relations import RELATION_MARGIN, RELATIONS, cell_of, relation_gap
from flmm_detseg.datasets.tinyworld.scene import Scene, SceneObject
from flmm_detseg.datasets.tinyworld.word_list import COUNT_WORDS, PLURALS

# Share of an object's border that has to lie on one region for "what is behind it" to have one answer.
_BEHIND_SHARE = 0.9


def frame_questions(scene: Scene, fixed: Collection[int]) -> list[tuple[str, str, str]]:
    """All questions that the frame allows.

    Args:
        scene: The frame.
        fixed: Ids of the objects that stay where they are in the whole stream: they belong to the background.

    Returns:
        Question, answer and group (``"objects"``, ``"background"`` or ``"cross"``); every question once.
    """
    found: dict[str, tuple[str, str]] = {}
    for question, answer, group in [
        *_single(scene, fixed),
        *_relations(scene, fixed),
        *_counts(scene, fixed),
    ]:
        found.setdefault(question, (answer, group))
    return [(question, answer, group) for question, (answer, group) in found.items()]


def pick_question(
    questions: list[tuple[str, str, str]], rng: np.random.Generator, cross_share: float = 0.4
) -> tuple[str, str, str]:
    """Draws one; so many of the frames that allow it get a question across groups.

    Args:
        questions: Not empty.
        rng: Source of the draw.
        cross_share: Share of questions of the group ``"cross"``.

    Returns:
        One of ``questions``.
    """
    cross = [item for item in questions if item[2] == "cross"]
    plain = [item for item in questions if item[2] != "cross"]
    wanted = cross if cross and (not plain or rng.random() < cross_share) else plain
    return wanted[int(rng.integers(len(wanted)))]


def _single(scene: Scene, fixed: Collection[int]) -> Iterator[tuple[str, str, str]]:
    for obj in scene.objects:
        names = unique_descriptions(scene, obj)
        group = "background" if obj.object_id in fixed else "objects"
        for name in names:
            if "colour" not in dict(name):
                yield f"what colour is the {speak(name)} ?", obj.colour, group
                break
        if not names:
            continue
        if (cell := cell_of(obj, scene.image.shape[:2])) is not None:
            yield f"where is the {speak(names[0])} ?", cell, group
        if (stuff := _behind(scene, obj)) is not None:
            behind = "background" if obj.object_id in fixed else "cross"
            yield f"what is behind the {speak(names[0])} ?", stuff, behind


def _behind(scene: Scene, obj: SceneObject) -> str | None:
    """Name of the one region around an object."""
    x0, y0, x1, y1 = obj.box_xyxy
    window = slice(max(0, y0 - 2), y1 + 2), slice(max(0, x0 - 2), x1 + 2)
    pixels = {region.name: int(region.mask[window].sum()) for region in scene.stuff}
    name = max(pixels, key=pixels.__getitem__, default=None)
    if name is None or pixels[name] < _BEHIND_SHARE * sum(pixels.values()) or not pixels[name]:
        return None
    return name


def _relations(scene: Scene, fixed: Collection[int]) -> Iterator[tuple[str, str, str]]:
    named = [(obj, names[0]) for obj in scene.objects if (names := unique_descriptions(scene, obj))]
    for first, first_name in named:
        for second, second_name in named:
            if first is second:
                continue
            both = {first.object_id in fixed, second.object_id in fixed}
            group = "cross" if len(both) == 2 else "background" if both == {True} else "objects"
            for relation in RELATIONS:
                gap = relation_gap(first, relation, second)
                if abs(gap) >= RELATION_MARGIN:
                    question = f"is the {speak(first_name)} {relation} the {speak(second_name)} ?"
                    yield question, "yes" if gap > 0 else "no", group


def _counts(scene: Scene, fixed: Collection[int]) -> Iterator[tuple[str, str, str]]:
    """Counts are asked only where each group has at least one of what is counted."""
    counted: dict[str, list[bool]] = {}
    for obj in scene.objects:
        stays = obj.object_id in fixed
        for words in (f"{obj.colour} objects", PLURALS[obj.kind], "objects"):
            counted.setdefault(words, []).append(stays)
    for words, stay in counted.items():
        if len(set(stay)) == 2:
            yield f"how many {words} are there ?", COUNT_WORDS[len(stay)], "cross"
