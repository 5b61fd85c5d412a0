"""TinyWorld is deterministic, true, unambiguous, and closed under its vocabulary."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys

import numpy as np
import pytest

from flmm_detseg.datasets.tinyworld import (
    COLOURS,
    KINDS,
    QUESTION_KINDS,
    SIZES,
    TEXTURES,
    Scene,
    SceneObject,
    format_box,
    make_questions,
    make_scene,
    narrate,
    parse_box,
    referring_expressions,
    vocabulary,
)

SEED, COUNT = 3, 40
COUNTS = ("zero", "one", "two", "three", "four", "five", "six", "seven")


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    splits = ("train", "val", "testA", "testB")
    return [make_scene(SEED, index, splits[index % 4]) for index in range(COUNT)]


def digest(scene: Scene) -> bytes:
    masks = b"".join(np.packbits(o.mask).tobytes() for o in (*scene.objects, *scene.stuff))
    return scene.image.tobytes() + masks


def test_same_arguments_give_same_bytes_also_in_another_process() -> None:
    code = (
        "import hashlib, numpy as np; from flmm_detseg.datasets.tinyworld import *;"
        f"s = make_scene({SEED}, 5, 'val'); t = narrate(s, {SEED}).text;"
        "m = b''.join(np.packbits(o.mask).tobytes() for o in (*s.objects, *s.stuff));"
        "print(hashlib.sha256(s.image.tobytes() + m + t.encode()).hexdigest())"
    )
    outputs = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    }
    scene = make_scene(SEED, 5, "val")
    text = narrate(scene, SEED).text.encode()
    outputs.add(hashlib.sha256(digest(scene) + text).hexdigest() + "\n")
    assert len(outputs) == 1


def test_seed_index_and_split_matter() -> None:
    digests = {
        digest(make_scene(*key)) for key in ((0, 0, "train"), (0, 1, "train"), (1, 0, "train"), (0, 0, "val"))
    }
    assert len(digests) == 4


def test_the_world_is_as_rich_as_promised(scenes: list[Scene]) -> None:
    objects = [o for index in range(150) for o in make_scene(SEED, index).objects]
    assert {o.kind for o in objects} == set(KINDS)
    assert len(KINDS) >= 12
    assert {o.colour for o in objects} == set(COLOURS)
    assert len(COLOURS) == 8
    assert {o.size for o in objects} == set(SIZES)
    assert {o.texture for o in objects} == set(TEXTURES)
    assert all(1 <= len(s.objects) <= 7 for s in scenes)
    assert any(len(s.stuff) >= 2 for s in scenes)


def test_masks_are_visible_disjoint_and_boxes_tight(scenes: list[Scene]) -> None:
    for scene in scenes:
        layers = [o.mask for o in scene.objects] + [r.mask for r in scene.stuff]
        assert (np.sum(layers, axis=0) == 1).all()
        for obj in scene.objects:
            assert obj.mask.sum() >= 80
            rows, cols = np.nonzero(obj.mask)
            assert obj.box_xyxy == (cols.min(), rows.min(), cols.max() + 1, rows.max() + 1)


# An independent reading of the language: words -> predicate, written from the grammar, not from the generator.
def reads_as(words: list[str], obj: SceneObject) -> bool:
    return all(word in ("object", obj.kind, obj.colour, obj.size, obj.texture) for word in words)


def side_value(obj: SceneObject, side: str) -> float:
    x, y = obj.centre_xy
    return {"left": x, "right": -x, "top": y, "bottom": -y}[side]


def cell_words(obj: SceneObject, scene: Scene) -> set[str]:
    row = ("top", "", "bottom")[min(2, int(obj.centre_xy[1] * 3 / scene.image.shape[0]))]
    col = ("left", "", "right")[min(2, int(obj.centre_xy[0] * 3 / scene.image.shape[1]))]
    return {w for w in (row, col) if w} or {"centre"}


def referents(scene: Scene, text: str) -> list[int]:
    """Ids of the objects an expression can mean."""
    relation = re.fullmatch(r"the (.+) (left of|right of|above|below) the (.+)", text)
    if relation:
        head, word, anchor_words = relation.groups()
        (anchor,) = [o for o in scene.objects if reads_as(anchor_words.split(), o)]
        dx = {"left of": (1, 0), "right of": (-1, 0), "above": (0, 1), "below": (0, -1)}[word]
        return [
            o.object_id
            for o in scene.objects
            if o is not anchor
            and reads_as(head.split(), o)
            and np.dot(dx, np.subtract(anchor.centre_xy, o.centre_xy)) > 0
        ]
    place = re.fullmatch(r"the (.+) (?:at the|in the) ([a-z ]+)", text)
    if place:
        head, cell = place.groups()
        return [
            o.object_id
            for o in scene.objects
            if reads_as(head.split(), o) and cell_words(o, scene) == set(cell.split())
        ]
    words = text.split()[1:]
    if words[0] in ("left", "right", "top", "bottom"):
        rivals = [o for o in scene.objects if reads_as(words[1:], o)]
        return [min(rivals, key=lambda o: side_value(o, words[0])).object_id]
    return [o.object_id for o in scene.objects if reads_as(words, o)]


def test_every_expression_means_exactly_its_object(scenes: list[Scene]) -> None:
    kinds = set()
    for scene in scenes:
        counts: dict[int, int] = {}
        for expression in referring_expressions(scene, SEED):
            assert referents(scene, expression.text) == [expression.object_id], (scene.scene_id, expression)
            counts[expression.object_id] = counts.get(expression.object_id, 0) + 1
            kinds.add(expression.kind)
        assert all(count >= 3 for count in counts.values())
    assert kinds == {"attributes", "location", "relation"}


def test_narratives_ground_what_they_name(scenes: list[Scene]) -> None:
    plurals = 0
    for scene in scenes:
        text = narrate(scene, SEED)
        assert any(not phrase.is_thing for phrase in text.phrases)
        for phrase in text.phrases:
            ((start, end),) = phrase.spans
            words = text.text[start:end].split()
            if not phrase.is_thing:
                (region,) = [r for r in scene.stuff if r.region_id in phrase.region_ids]
                assert words == [region.name]
            elif phrase.is_plural:
                plurals += 1
                named = {
                    o.object_id
                    for o in scene.objects
                    if words[1] == {"cross": "crosses"}.get(o.kind, o.kind + "s")
                }
                assert set(phrase.object_ids) == named
                assert words[0] == COUNTS[len(named)]
            else:
                (obj,) = [o for o in scene.objects if o.object_id in phrase.object_ids]
                assert reads_as(words[1:], obj)
    assert plurals


def test_answers_are_true(scenes: list[Scene]) -> None:
    kinds: set[str] = set()
    yes_no = []
    for scene in scenes:
        for question in make_questions(scene, SEED, per_kind=3):
            kinds.add(question.kind)
            assert answer(scene, question.text, question.kind) == question.answer, (scene.scene_id, question)
            if question.kind == "presence":
                yes_no.append(question.answer == "yes")
    assert kinds == set(QUESTION_KINDS)
    assert 0.3 < np.mean(yes_no) < 0.7


def answer(scene: Scene, text: str, kind: str) -> str:
    def named(words: str) -> SceneObject:
        (obj,) = [o for o in scene.objects if reads_as(words.split(), o)]
        return obj

    text = text.removesuffix(" ?")
    if kind == "colour":
        return named(text.removeprefix("what colour is the ")).colour
    if kind == "kind":
        words = text.removeprefix("what kind of object is ")
        if words in COLOURS:
            return named(words).kind
        cell = set(words.removeprefix("at the ").removeprefix("in the ").split())
        (obj,) = [o for o in scene.objects if cell_words(o, scene) == cell]
        return obj.kind
    if kind == "presence":
        words = re.sub(r"^is there an? ", "", text).split()
        return "yes" if any(reads_as(words, o) for o in scene.objects) else "no"
    if kind == "count":
        words = text.removeprefix("how many ").removesuffix(" are there").split()
        words[-1] = words[-1].removesuffix("s") if words[-1] != "crosses" else "cross"
        return COUNTS[sum(reads_as(words, o) for o in scene.objects)]
    if kind == "position":
        words = cell_words(named(text.removeprefix("where is the ")), scene)
        return " ".join(sorted(words, key=("top", "bottom", "left", "right", "centre").index))
    if kind == "box":
        obj = named(text.removeprefix("what is the box of the "))
        return format_box(obj.box_xyxy, scene.image.shape[:2])
    choice = re.fullmatch(r"which is (larger|smaller) , the (.+) or the (.+)", text)
    if choice:
        word, *names = choice.groups()
        (right,) = [n for n in names if (named(n).size == "large") == (word == "larger")]
        return f"the {right}"
    relation = re.fullmatch(r"is the (.+) (left of|right of|above|below) the (.+)", text)
    first, word, second = relation.groups()
    delta = np.subtract(named(second).centre_xy, named(first).centre_xy)
    return (
        "yes"
        if {"left of": delta[0], "right of": -delta[0], "above": delta[1], "below": -delta[1]}[word] > 0
        else "no"
    )


def test_vocabulary_closes_over_the_language(scenes: list[Scene]) -> None:
    words = set(vocabulary())
    assert len(words) == len(vocabulary())
    for scene in scenes:
        texts = [narrate(scene, SEED).text, *(e.text for e in referring_expressions(scene, SEED))]
        for question in make_questions(scene, SEED, per_kind=2):
            texts += [question.text, question.answer]
        assert {w for t in texts for w in t.split()} <= words


def test_boxes_as_words_come_back_within_a_step(scenes: list[Scene]) -> None:
    for obj in scenes[0].objects:
        size = scenes[0].image.shape[:2]
        back = parse_box(format_box(obj.box_xyxy, size), size)
        assert np.abs(np.subtract(back, obj.box_xyxy)).max() <= 0.01 * max(size)
    for damaged in ("", "010 020 030", "010 020 030 1000", "a b c d", "10 20 30 40"):
        assert parse_box(damaged, (112, 112)) is None
