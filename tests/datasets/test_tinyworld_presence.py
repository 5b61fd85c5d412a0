from __future__ import annotations

import json

import numpy as np
import pytest

from flmm_detseg.datasets import JSONLDataset
from flmm_detseg.datasets.tinyworld.absent_phrases import ABSENCES, presence_texts
from flmm_detseg.datasets.tinyworld.presence_files import PresenceSpec, write_presence
from flmm_detseg.datasets.tinyworld.questions import presence_question
from flmm_detseg.datasets.tinyworld.render import make_scene
from flmm_detseg.datasets.tinyworld.scene import COLOURS, KINDS, SIZES, TEXTURES
from flmm_detseg.errors import ConfigError, DataError

SCENES = [make_scene(15, index, "train") for index in range(30)]


def read_description(words: str) -> dict[str, str]:
    """What a description says, read word by word."""
    found = {}
    for word in words.split():
        for name, values in (("size", SIZES), ("texture", TEXTURES), ("colour", COLOURS), ("kind", KINDS)):
            if word in values:
                found[name] = word
    return found


def fitting(scene, words: str) -> list:
    said = read_description(words)
    return [o for o in scene.objects if all(getattr(o, name) == value for name, value in said.items())]


def test_what_is_absent_is_absent_and_only_in_the_way_that_is_said():
    seen = dict.fromkeys((None, *ABSENCES), 0)
    for scene in SCENES:
        for text in presence_texts(scene, 15):
            for phrase in text.phrases:
                words = text.text[slice(*phrase.span)]
                seen[phrase.absent] += 1
                if phrase.absent == "kind":
                    assert not any(o.kind == read_description(words)["kind"] for o in scene.objects)
                elif phrase.absent == "attribute":
                    assert not fitting(scene, words)
                    assert fitting(scene, read_description(words)["kind"])
                elif phrase.absent == "relation":
                    relation = next(r for r in ("left of", "right of", "above", "below") if f" {r} " in words)
                    head, anchor = words.split(f" {relation} ")
                    (other,) = fitting(scene, anchor)
                    heads = [o for o in fitting(scene, head) if o is not other]
                    assert heads
                    axis, sign = {"left of": (0, 1), "right of": (0, -1), "above": (1, 1), "below": (1, -1)}[
                        relation
                    ]
                    for o in heads:
                        assert sign * (o.centre_xy[axis] - other.centre_xy[axis]) >= 10
                elif phrase.absent == "place":
                    head, place = words.split(" at the ") if " at the " in words else words.split(" in the ")
                    for o in fitting(scene, head):
                        x, y = (min(2, int(v / side * 3)) for v, side in zip(o.centre_xy, (112, 112)))
                        where = f"{('top', '', 'bottom')[y]} {('left', '', 'right')[x]}".strip() or "centre"
                        assert where != place
                else:
                    assert phrase.object_ids or phrase.region_ids
    assert min(seen.values()) > 10


def test_one_pattern_has_true_and_false_texts():
    forms = {}
    for scene in SCENES:
        for text in presence_texts(scene, 15):
            if text.form != "caption":
                forms.setdefault(text.form, set()).add(text.phrases[0].absent is None)
    assert forms == {form: {True, False} for form in ("attributes", "place", "relation")}


def test_files_are_read_and_say_what_is_absent(tmp_path):
    spec = PresenceSpec(train=3, val=2, test=2, seed=4)
    facts = write_presence(tmp_path / "world", spec, progress=False)
    assert facts["written"]
    assert not write_presence(tmp_path / "world", spec, progress=False)["written"]
    with pytest.raises(ConfigError, match="other scenes"):
        write_presence(tmp_path / "world", PresenceSpec(train=4, val=2, test=2, seed=4), progress=False)
    pixels = {}
    for split in ("train", "val", "test"):
        dataset = JSONLDataset(str(tmp_path / "world" / f"{split}.jsonl"), allow_empty=True)
        for sample in dataset:
            pixels.setdefault(sample.image.tobytes(), set()).add(split)
            for mask, absent in zip(sample.masks, sample.meta["absent"], strict=True):
                assert mask.any() == (absent is None)
    assert len(pixels) == 7
    assert all(len(splits) == 1 for splits in pixels.values())
    captions = JSONLDataset(str(tmp_path / "world" / "test_captions.jsonl"), allow_empty=True)
    assert all(len(sample.phrases) > 1 for sample in captions)
    again = write_presence(tmp_path / "again", spec, progress=False)
    assert again["test"] == facts["test"]
    assert (tmp_path / "again/test.jsonl").read_bytes() == (tmp_path / "world/test.jsonl").read_bytes()


def test_splits_need_scenes():
    with pytest.raises(ConfigError, match="`val` is 0"):
        PresenceSpec(val=0)


@pytest.mark.parametrize("absent", [3, "", "kind"])
def test_absent_is_a_text_of_a_phrase_without_a_mask(tmp_path, absent):
    from PIL import Image

    Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    mask = {"polygon": [[0, 0, 3, 0, 3, 3, 0, 3]]} if absent == "kind" else None
    line = {"image": "a.png", "caption": "x", "phrases": [{"span": [0, 1], "mask": mask, "absent": absent}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(line))
    with pytest.raises(DataError, match="absent"):
        JSONLDataset(str(tmp_path / "a.jsonl"), allow_empty=True)


def test_questions_are_those_that_the_tiny_llava_knows():
    assert presence_question("the red ring") == "is there a red ring ?"
    assert presence_question("an orange star") == "is there an orange star ?"
    assert presence_question("the ring left of the star") == "is the ring left of the star ?"
