"""Streams: deterministic, backgrounds that repeat, questions whose answers are true."""

from __future__ import annotations

import re

import numpy as np
import pytest

from flmm_detseg.datasets.tinyworld.stream_questions import frame_questions
from flmm_detseg.datasets.tinyworld.streams import ENCODINGS, STREAM_KINDS, make_stream, reencode
from flmm_detseg.datasets.tinyworld.word_list import COUNT_WORDS, vocabulary
from flmm_detseg.errors import ConfigError

FRAMES = 24


def boxes_mask(items) -> np.ndarray:
    """Everything that ever changes in a stream, bool ``[H, W]``."""
    mask = np.zeros(items[0].image.shape[:2], dtype=bool)
    for item in items:
        for x0, y0, x1, y1 in item.objects_xyxy:
            mask[y0:y1, x0:x1] = True
    return mask


@pytest.mark.parametrize("kind", STREAM_KINDS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_streams_are_deterministic(kind, encoding):
    first, second = (make_stream(kind, 3, 1, 6, encoding=encoding) for _ in range(2))
    other = make_stream(kind, 3, 2, 6, encoding=encoding)
    assert len(first) == 6
    for one, two in zip(first, second, strict=True):
        assert np.array_equal(one.image, two.image)
        assert (one.question, one.answer, one.exact_repeat) == (two.question, two.answer, two.exact_repeat)
    assert not np.array_equal(first[0].image, other[0].image)


@pytest.mark.parametrize("kind", ["camera", "slides"])
def test_backgrounds_of_stages_never_change(kind):
    items = make_stream(kind, 0, 0, FRAMES)
    still = ~boxes_mask(items)
    assert still.mean() > 0.6
    assert all(np.array_equal(item.image[still], items[0].image[still]) for item in items)
    assert sum(not np.array_equal(item.image, items[0].image) for item in items) > FRAMES / 2


def test_screens_return_to_two_wallpapers():
    items = make_stream("screen", 0, 0, FRAMES)
    still = ~boxes_mask(items)
    wallpapers = {item.image[still].tobytes() for item in items}
    assert len(wallpapers) == 2
    assert len({item.image.tobytes() for item in items}) > FRAMES / 2


def test_nothing_stays_in_a_scrolling_chat():
    items = [item for item in make_stream("scroll", 0, 0, FRAMES) if not item.exact_repeat]
    for before, after in zip(items, items[1:]):
        changed = (before.image != after.image).any(-1)
        assert changed[18:].mean() > 0.5


@pytest.mark.parametrize("kind", STREAM_KINDS)
def test_repeats_are_flagged(kind):
    items = make_stream(kind, 1, 0, 60)
    seen = []
    for item in items:
        assert item.exact_repeat == any(np.array_equal(item.image, image) for image in seen)
        seen.append(item.image)
    assert any(item.exact_repeat for item in items)


def test_encodings_change_what_they_should():
    image = make_stream("camera", 0, 0, 1)[0].image
    assert np.array_equal(reencode(image, "png"), image)
    lossy = reencode(image, "jpeg")
    assert not np.array_equal(lossy, image)
    assert np.abs(lossy.astype(int) - image).mean() < 12
    mixed = {item.encoding for item in make_stream("camera", 0, 0, FRAMES, encoding="mixed")}
    assert mixed == {"png", "jpeg"}


@pytest.mark.parametrize(("kind", "groups"), [("screen", 3), ("camera", 3), ("slides", 3), ("scroll", 1)])
def test_all_groups_of_questions_are_asked(kind, groups):
    items = [item for index in range(4) for item in make_stream(kind, 0, index, FRAMES)]
    assert len({item.group for item in items}) == groups
    known = set(vocabulary())
    for item in items:
        assert set(re.sub(r"[.?,]", "", item.question).split()) <= known


def test_counts_and_relations_across_groups_are_true():
    counts = relations = 0
    for index in range(6):
        for item in make_stream("camera", 0, index, 8):
            for question, answer, group in frame_questions(item.scene, item.fixed):
                objects = item.scene.objects
                if found := re.fullmatch(r"how many (\w+) objects are there \?", question):
                    matching = [obj for obj in objects if obj.colour == found[1]]
                    assert answer == COUNT_WORDS[len(matching)]
                    assert {obj.object_id in item.fixed for obj in matching} == {True, False}
                    assert group == "cross"
                    counts += 1
                elif found := re.fullmatch(r"is the (.*) (left of|above) the (.*) \?", question):
                    first, second = (
                        [obj for obj in objects if all(self_says(obj, word) for word in words.split())]
                        for words in (found[1], found[3])
                    )
                    assert len(first) == len(second) == 1
                    axis = 0 if found[2] == "left of" else 1
                    assert (answer == "yes") == (first[0].centre_xy[axis] < second[0].centre_xy[axis])
                    stays = {first[0].object_id in item.fixed, second[0].object_id in item.fixed}
                    assert (group == "cross") == (len(stays) == 2)
                    relations += 1
    assert counts > 3
    assert relations > 50


def self_says(obj, word: str) -> bool:
    return word in (obj.colour, obj.kind, obj.size, obj.texture)


def test_unknown_kinds_are_refused():
    with pytest.raises(ConfigError, match="encoding"):
        make_stream("camera", 0, 0, 2, encoding="gif")
    with pytest.raises(ConfigError, match="kind"):
        make_stream("radio", 0, 0, 2)
