"""Queries of the reasoning set mean what they say: every answer is worked out again from the scene's objects."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from flmm_detseg.datasets.tinyworld import COLOURS, KINDS, SIZES, TEXTURES, make_scene, narrate, vocabulary
from flmm_detseg.datasets.tinyworld.reason.draw import draw_items, is_held_out
from flmm_detseg.datasets.tinyworld.reason.facts import facts
from flmm_detseg.datasets.tinyworld.reason.families import queries
from flmm_detseg.datasets.tinyworld.reason.files import explanation
from flmm_detseg.datasets.tinyworld.reason.properties import PROPERTIES
from flmm_detseg.datasets.tinyworld.reason.query import View
from flmm_detseg.datasets.tinyworld.reason.rules import RULES, iou, union
from flmm_detseg.datasets.tinyworld.reason.spec import ReasonSpec
from flmm_detseg.datasets.tinyworld.reason.wordings import (
    NUM_HELD_OUT,
    WORDINGS,
    held_out_wordings,
    known_wordings,
    reason_words,
)
from flmm_detseg.datasets.tinyworld.word_list import PLURALS
from flmm_detseg.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SPEC = ReasonSpec(train_images=60, val_images=8, test_images=60, seed=3)
VALUES = {"kind": KINDS, "colour": tuple(COLOURS), "size": SIZES, "texture": TEXTURES}
SINGULAR = {plural: kind for kind, plural in PLURALS.items()}
TOWARDS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
PLACES = {"leftmost": (0, 1), "rightmost": (0, -1), "highest": (1, 1), "lowest": (1, -1)}


@pytest.fixture(scope="module")
def views():
    scenes = [make_scene(5, index, "val") for index in range(45)]
    return [View(scene) for scene in scenes]


@pytest.fixture(scope="module")
def drawn():
    return {split: list(draw_items(SPEC, split)) for split in ("train", "test")}


def centre(obj):
    """Centre ``(x, y)`` of the box of the visible pixels."""
    rows, cols = np.flatnonzero(obj.mask.any(1)), np.flatnonzero(obj.mask.any(0))
    return np.array([cols[0] + cols[-1] + 1, rows[0] + rows[-1] + 1]) / 2


def meant(scene, words):
    """Objects that fit words such as "the large red ring", "red object", "other objects"."""
    given = {}
    for word in words.split():
        word = SINGULAR.get(word, word)
        for attribute, values in VALUES.items():
            if word in values:
                given[attribute] = word
    return [o for o in scene.objects if all(getattr(o, key) == value for key, value in given.items())]


def one(scene, words):
    (found,) = meant(scene, words)
    return found


def ranked(values, margin):
    """Position of the smallest value, which is smaller than the next one by the margin."""
    first, second = sorted(values)[:2]
    assert second - first >= margin - 1e-9
    return int(np.argmin(values))


def side_of(scene, members, side):
    axis, sign = PLACES[side]
    return members[ranked([sign * centre(o)[axis] for o in members], 10)]


def towards(objects, relation, anchor):
    """Objects on that side; every other one is clearly not."""
    axis, sign = TOWARDS[relation]
    gaps = [(o, sign * (centre(o)[axis] - centre(anchor)[axis])) for o in objects if o is not anchor]
    assert all(gap >= 10 or gap <= -3 for _, gap in gaps)
    return [o for o, gap in gaps if gap > 0]


def to_point(objects, point, near):
    sign = 1 if near in ("nearest to", True) else -1
    return objects[ranked([sign * np.linalg.norm(centre(o) - point) for o in objects], 10)]


def having(objects, predicate):
    (known,) = [p for p in PROPERTIES.values() if p.predicate == predicate]
    return [o for o in objects if o.kind in known.kinds]


def alike(scene, obj, attribute):
    return [o for o in scene.objects if o is not obj and getattr(o, attribute) == getattr(obj, attribute)]


def solve_odd(scene, s):
    seen = Counter(getattr(o, s["a"]) for o in scene.objects)
    return [o for o in scene.objects if seen[getattr(o, s["a"])] == 1]


def solve_area(scene, s):
    members = meant(scene, s["c"])
    sign = -1 if s["sup"] == "largest" else 1
    return [members[ranked([sign * np.log(o.mask.sum()) for o in members], np.log(1.25))]]


def solve_corner(scene, s):
    row, col = s["corner"].split()
    size = scene.image.shape[:2]
    point = np.array([{"left": 0, "right": size[1]}[col], {"top": 0, "bottom": size[0]}[row]])
    return [to_point(meant(scene, s["c"]), point, True)]


def solve_between(scene, s):
    first, second = one(scene, s["x"]), one(scene, s["y"])
    start, end = centre(first), centre(second)
    line = start + np.linspace(0, 1, 400)[:, None] * (end - start)
    met = []
    for obj in scene.objects:
        if obj not in (first, second):
            cols, rows = np.clip(line, 0, 111).astype(int).T
            hit = obj.mask[rows, cols].sum() * np.linalg.norm(end - start) / 400
            if hit > 2:
                met.append(obj)
    return met


def solve_counted(scene, s):
    number = {"two": 2, "three": 3}[s["n"]]
    seen = Counter(getattr(o, s["a"]) for o in scene.objects)
    assert max(seen.values()) == number
    return [o for o in scene.objects if seen[getattr(o, s["a"])] == number]


def solve_negated(scene, s):
    left_out = meant(scene, s["not"])
    members = meant(scene, s["c"])
    assert any(o in left_out for o in members), "nothing is left out"
    assert {id(o) for o in left_out} == {id(o) for o in meant(scene, s["except"])}
    return [o for o in members if o not in left_out]


def solve_two(scene, s):
    first = towards(scene.objects, s["rel"], one(scene, s["x"]))
    second = towards(scene.objects, s["rel2"], one(scene, s["y"]))
    return [o for o in first if o in second]


def solve_nearest(scene, s):
    anchor = one(scene, s["x"])
    members = [o for o in meant(scene, s["c"]) if o is not anchor]
    return [to_point(members, centre(anchor), s["near"])]


SOLVE = {
    "odd": solve_odd,
    "extreme": lambda scene, s: [side_of(scene, meant(scene, s["c"]), s["side"])],
    "area": solve_area,
    "centre": lambda scene, s: [to_point(meant(scene, s["c"]), np.array([56, 56]), s["near"])],
    "corner": solve_corner,
    "between": solve_between,
    "same": lambda scene, s: alike(scene, one(scene, s["x"]), s["a"]),
    "counted": solve_counted,
    "negated": solve_negated,
    "relation": lambda scene, s: towards(meant(scene, s["c"]), s["rel"], one(scene, s["x"])),
    "two_relations": solve_two,
    "nearest": solve_nearest,
    "property": lambda scene, s: having(scene.objects, s["p"]),
    "property_with": lambda scene, s: having(meant(scene, s["c"]), s["p"]),
    "chain": lambda scene, s: alike(scene, side_of(scene, scene.objects, s["side"]), s["a"]),
    "named": lambda scene, s: meant(scene, s["d"]),
}


@pytest.mark.parametrize("family", WORDINGS)
def test_answers_are_the_only_ones(family, views):
    seen = Counter()
    for view in views:
        for query in queries(view, family):
            answer = {o.object_id for o in SOLVE[family](view.scene, query.slots)}
            assert answer == {o.object_id for o in query.targets}, (query.slots, view.scene.scene_id)
            assert len(answer) <= 3
            assert bool(answer) == (query.absent is None)
            seen[query.absent] += 1
    assert seen[None] > 10
    others = {"named": {"kind", "attribute"}, "property": {"kind"}, "between": {"relation"}}
    others |= dict.fromkeys(("same", "negated", "property_with", "chain"), {"attribute"})
    others |= dict.fromkeys(("relation", "two_relations"), {"relation"})
    assert set(seen) - {None} == others.get(family, set())


def test_absent_attributes_and_kinds_are_what_they_are_called(views):
    for view in views:
        for query in queries(view, "named"):
            kind = query.slots["d"].split()[-1]
            present = any(o.kind == kind for o in view.objects)
            assert query.absent == {0: "kind" if not present else "attribute"}.get(len(query.targets))


def test_names_fit_one_object_alone(drawn):
    for items in drawn.values():
        for item in items:
            for name, obj in zip(item.names, item.query.targets, strict=True):
                found = meant(item.scene, name)
                if len(found) > 1:  # named by its place
                    assert obj in found
                    assert set(name.split()) & {"left", "right", "top", "bottom", "centre"}
                else:
                    assert found == [obj]
            text = explanation(item)
            assert text.endswith(" .")
            places = [text.find(name) for name in item.names]
            assert places == sorted(places)
            assert all(place >= 0 for place in places)
            assert not item.names or text.startswith(item.names[0])


def test_families_wordings_and_words():
    assert len(WORDINGS) >= 12
    words = set(vocabulary()) | set(reason_words())
    assert not set(reason_words()) & set(vocabulary())
    trained = {word for family in WORDINGS for text in known_wordings(family) for word in text.split()}
    trained |= {word for fact in facts() for word in fact.text.split()} | set(vocabulary())
    for family, wordings in WORDINGS.items():
        assert len(set(wordings)) == len(wordings) >= 5 + NUM_HELD_OUT
        for text in held_out_wordings(family):
            assert {word for word in text.split() if "{" not in word} <= trained, (
                "a word of the test split only"
            )
    for fact in (*facts(), *facts(held_out=True)):
        assert set(f"{fact.text} {fact.answer}".split()) <= words


def test_how_new_the_held_out_wordings_are_is_said():
    def words(text: str) -> set[str]:
        return {word for word in text.split() if word.isalpha()}

    new = [
        text
        for family in WORDINGS
        for text in held_out_wordings(family)
        if words(text) - set().union(*map(words, known_wordings(family)))
    ]
    number = sum(len(held_out_wordings(family)) for family in WORDINGS)
    said = f"{len(new)} of the {number} ({len(new) / number:.0%}".replace("%", " %")
    assert said in (ROOT / "data" / "README.md").read_text(encoding="utf-8")


def test_drawn_texts_are_in_the_vocabulary(drawn):
    words = set(vocabulary()) | set(reason_words())
    for items in drawn.values():
        for item in items:
            for text in (*item.texts, *item.names, explanation(item)):
                assert set(text.split()) <= words, text
                assert "{" not in text


def test_what_is_held_out_is_not_in_the_training_split(drawn):
    known = {family: len(known_wordings(family)) for family in WORDINGS}
    val = list(draw_items(SPEC, "val"))
    for item in (*drawn["train"], *val):
        assert item.held_out is None
        assert not is_held_out(item.query)
        assert item.wording < known[item.query.family]
        count = known[item.query.family] if item in drawn["train"] else 1
        assert len(set(item.texts)) == len(item.texts) == count
    trained = {text for item in drawn["train"] for text in item.texts}
    asked = Counter()
    for item in drawn["test"]:
        asked[item.held_out] += 1
        assert (item.wording >= known[item.query.family]) == (item.held_out == "wording")
        assert is_held_out(item.query) == (item.held_out == "combination")
        assert item.held_out != "wording" or item.texts[0] not in trained
    assert asked[None] > 60
    assert asked["wording"] > 50
    assert asked["combination"] > 15


def test_splits_share_no_scene_and_images_are_asked_three_things(drawn):
    pictures = {}
    for split, items in {**drawn, "val": list(draw_items(SPEC, "val"))}.items():
        pictures[split] = {item.scene.image.tobytes() for item in items}
        assert len(pictures[split]) == SPEC.counts()[split]
        assert set(Counter(item.image for item in items).values()) == {3}
        for start in range(0, len(items), 3):
            three = items[start : start + 3]
            assert len({item.query.family for item in three}) == 3
            assert len({tuple(o.object_id for o in item.query.targets) for item in three}) == 3
    world = {
        make_scene(SPEC.seed, index, split).image.tobytes()
        for split in ("train", "val")
        for index in range(20)
    }
    sets = [*pictures.values(), world]
    assert len(set.union(*sets)) == sum(map(len, sets))


def test_every_family_and_absence_has_its_share(drawn):
    for items in drawn.values():
        absent = Counter(item.query.absent for item in items)
        assert absent[None] == pytest.approx(0.8 * len(items), abs=3)
        for key in ("kind", "attribute", "relation"):
            assert absent[key] == pytest.approx(0.2 / 3 * len(items), abs=3)
        families = Counter(item.query.family for item in items if item.query.targets)
        assert set(families) == set(WORDINGS)
        assert max(families.values()) <= 2 * min(families.values())
        assert {len(item.names) for item in items} == {0, 1, 2, 3}


def test_rules_without_reasoning_fail(drawn):
    items = drawn["test"]
    for name, rule in RULES.items():
        found = [
            iou(union(i.scene, rule(i.scene, i.texts[0])), union(i.scene, i.query.targets)) for i in items
        ]
        assert np.mean(found) < 0.35, name
    other = [
        iou(union(a.scene, a.query.targets), union(b.scene, b.query.targets))
        for a, b in zip(items, _next_of_image(items), strict=True)
    ]
    assert np.mean(other) < 0.2


def _next_of_image(items):
    """For every item the next one about the same image."""
    return [items[3 * (i // 3) + (i + 1) % 3] for i in range(len(items))]


def test_properties_are_never_said_in_captions(views):
    words = {word for known in PROPERTIES.values() for word in known.predicate.split()} - set(vocabulary())
    for view in views:
        assert not words & set(narrate(view.scene, 1).text.split())
    for kind in KINDS:
        assert any(kind in known.kinds for known in PROPERTIES.values())


def test_facts_are_true_and_held_out_in_wording_only():
    trained, tested = list(facts()), list(facts(held_out=True))
    assert not {fact.text for fact in trained} & {fact.text for fact in tested}
    for fact in (*trained, *tested):
        kinds = [kind for kind in KINDS if kind in fact.text.split()]
        known = PROPERTIES[fact.name]
        if kinds:
            assert fact.answer == ("yes" if kinds[0] in known.kinds else "no")
        else:
            assert [word for word in fact.answer.split() if word in KINDS] == list(known.kinds)
    pairs = {(fact.name, kind) for fact in tested for kind in KINDS if kind in fact.text.split()}
    assert len(pairs) == len(PROPERTIES) * len(KINDS)


def test_the_draw_is_repeatable_and_needs_images(drawn):
    again = list(islice(draw_items(SPEC, "test"), 12))
    for first, second in zip(again, drawn["test"], strict=False):
        assert (first.texts, first.names, first.held_out) == (second.texts, second.names, second.held_out)
    with pytest.raises(ConfigError, match="val_images, test_images must be at least 1"):
        ReasonSpec(val_images=0, test_images=-1)
