from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from flmm_detseg.datasets import AbsentPhrases, JSONLDataset
from flmm_detseg.errors import DataError

PHRASES = {
    "a.png": ["the red car", "a dog"],
    "b.png": ["the cat on the mat"],
    "c.png": ["two dogs and a car", "the left bus"],
}
# A dog is annotated in b.png, though nobody mentions it.
CLASSES = {"a.png": ["car", "dog"], "b.png": ["cat", "dog"], "c.png": ["car", "bus"]}
NAMES = ["car", "dog", "cat", "bus", "zebra"]


def write(tmp_path, classes=CLASSES, names=NAMES):
    lines, images, annotations = [], [], []
    for number, (name, phrases) in enumerate(PHRASES.items()):
        Image.fromarray(np.full((6, 8, 3), 40 * number, dtype=np.uint8)).save(tmp_path / name)
        mask = {"polygon": [[0, 0, 4, 0, 4, 4, 0, 4]]}
        for text in phrases:
            entry = {"image": name, "caption": text, "phrases": [{"span": [0, len(text)], "mask": mask}]}
            lines.append(json.dumps(entry))
        if name in classes:
            images.append({"id": number, "file_name": name, "height": 6, "width": 8})
        for kind in classes.get(name, []):
            annotations.append(
                {"id": len(annotations), "image_id": number, "category_id": names.index(kind), "bbox": [0, 0, 4, 4]}
            )  # fmt: skip
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    categories = [{"id": index, "name": name} for index, name in enumerate(names)]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    return JSONLDataset(str(tmp_path / "own.jsonl")), str(tmp_path / "coco.json")


def test_absent_phrases_name_nothing_that_is_annotated_or_mentioned(tmp_path):
    own, coco = write(tmp_path)
    mixed = AbsentPhrases(own, coco)
    assert len(mixed) == 2 * len(own)
    for index in range(len(own)):
        assert mixed[index].record_id == own[index].record_id
        assert mixed[index].masks.any()
        sample = mixed[len(own) + index]
        assert sample.record_id == mixed.record_id(len(own) + index) == f"{own[index].record_id}/absent"
        assert not sample.masks.any()
        assert sample.meta["absent"] == ["class"]
        name = sample.image_id.rsplit("/", 1)[1]
        (text,) = mixed.phrase_texts(len(own) + index)[1]
        assert sample.phrase_text(0) == text
        mentioned = CLASSES[name] + [word for phrase in PHRASES[name] for word in phrase.split()]
        assert not any(word in mentioned for word in text.split() if word in NAMES)
        assert text in [phrase for phrases in PHRASES.values() for phrase in phrases]
    # There are two for the picture with car and dog; one for that with a bus, a car and, in words only, dogs.
    assert mixed[len(own)].phrase_text(0) in ("the cat on the mat", "the left bus")
    assert {mixed[len(own) + index].phrase_text(0) for index in (3, 4)} == {"the cat on the mat"}


def test_it_is_a_function_of_seed_and_index(tmp_path):
    own, coco = write(tmp_path)
    texts = [AbsentPhrases(own, coco, seed=3).absent_texts(index) for index in range(len(own))]
    assert texts == [AbsentPhrases(own, coco, seed=3).absent_texts(index) for index in range(len(own))]


def test_what_cannot_be_drawn_is_said(tmp_path):
    own, coco = write(tmp_path)
    assert sorted(AbsentPhrases(own, coco, phrases_per_record=2).absent_texts(0)) == [
        "the cat on the mat",
        "the left bus",
    ]
    with pytest.raises(DataError, match="fewer than 3"):
        AbsentPhrases(own, coco, phrases_per_record=3).absent_texts(0)
    own, coco = write(tmp_path, names=["tram", "zebra"], classes={name: [] for name in PHRASES})
    with pytest.raises(DataError, match="names one of its classes"):
        AbsentPhrases(own, coco)
    own, coco = write(tmp_path, classes={"a.png": ["car"]})
    with pytest.raises(DataError, match=r"no image '.*b\.png'"):
        AbsentPhrases(own, coco)
