from __future__ import annotations

import json

import numpy as np
import pytest
from dataset_files import edit_refs, write_refcoco
from PIL import Image

from flmm_detseg.datasets import AbsentPhrases, JSONLDataset, RefCOCODataset
from flmm_detseg.errors import DataError

PHRASES = {
    "a.png": ["the red car", "a dog"],
    "b.png": ["the cat on the mat"],
    "c.png": ["two dogs and a car", "the left bus"],
}
# A dog is annotated in b.png, though nobody mentions it.
CLASSES = {"a.png": ["car", "dog"], "b.png": ["cat", "dog"], "c.png": ["car", "bus"]}
NAMES = ["car", "dog", "cat", "bus", "zebra"]


def write(tmp_path, classes=CLASSES, names=NAMES, said=PHRASES):
    lines, images, annotations = [], [], []
    for number, (name, phrases) in enumerate(said.items()):
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
        assert mixed[2 * index].record_id == mixed.record_id(2 * index) == own[index].record_id
        assert mixed[2 * index].masks.any()
        sample = mixed[2 * index + 1]
        assert sample.record_id == mixed.record_id(2 * index + 1) == f"{own[index].record_id}/absent"
        assert sample.image_id == mixed[2 * index].image_id
        assert not sample.masks.any()
        assert sample.meta["absent"] == ["class"]
        name = sample.image_id.rsplit("/", 1)[1]
        (text,) = mixed.phrase_texts(2 * index + 1)[1]
        assert sample.phrase_text(0) == text
        mentioned = CLASSES[name] + [word for phrase in PHRASES[name] for word in phrase.split()]
        assert not any(word in mentioned for word in text.split() if word in NAMES)
        assert text in [phrase for phrases in PHRASES.values() for phrase in phrases]
    # There are two for the picture with car and dog; one for that with a bus, a car and, in words only, dogs.
    assert mixed[1].phrase_text(0) in ("the cat on the mat", "the left bus")
    assert {mixed[index].phrase_text(0) for index in (7, 9)} == {"the cat on the mat"}


def drawn(own, coco) -> dict[str, set[str]]:
    """What may be drawn for each picture: the phrases of many seeds."""
    found: dict[str, set[str]] = {}
    for seed in range(12):
        mixed = AbsentPhrases(own, coco, seed=seed)
        for index in range(1, len(mixed), 2):
            image_id, texts = mixed.phrase_texts(index)
            found.setdefault(image_id.rsplit("/", 1)[1], set()).update(texts)
    return found


def test_words_that_mean_other_things_too_are_no_reason(tmp_path):
    """ "orange" is a colour, a teddy bear is a bear to many, "people" are persons."""
    said = {
        "a.png": ["the orange shirt", "the orange cat", "a bag of oranges"],
        "b.png": ["the bear on the left", "people"],
        "c.png": ["a toy on a bed", "the flower bed"],
    }
    classes = {"a.png": ["cat", "orange"], "b.png": ["person", "bear"], "c.png": ["teddy bear", "bed"]}
    names = ["orange", "cat", "bear", "teddy bear", "person", "bed"]
    found = drawn(*write(tmp_path, classes, names, said))
    # No orange shirt and no flower bed anywhere, though nobody annotated an orange or a bed there; no bear in c.png.
    assert found == {
        "a.png": {"the bear on the left", "people"},
        "b.png": {"the orange cat", "a bag of oranges"},
        "c.png": {"the orange cat", "a bag of oranges", "people"},
    }


def test_all_sentences_about_an_object_count_not_only_the_one_that_is_read(tmp_path):
    files = write_refcoco(tmp_path, num_images=3, num_objects=1, num_sentences=2)
    said = [["the thing", "the dog"], ["the dog", "the cow"], ["the cow", "a cat"]]

    def change(refs, instances):
        for ref, texts in zip(refs, said, strict=True):
            ref["split"] = "val"
            for sentence, text in zip(ref["sentences"], texts, strict=True):
                sentence["raw"] = text
        names = ("thing", "dog", "cow", "cat")
        instances["categories"] = [{"id": k + 1, "name": name} for k, name in enumerate(names)]
        for item in instances["annotations"]:
            item["bbox"] = [0, 0, 4, 4]

    edit_refs(files, change)
    reader = RefCOCODataset(**files, split="val", sentences="first", layout="split")
    assert [reader.phrase_texts(index)[1] for index in range(3)] == [["the thing"], ["the dog"], ["the cow"]]
    found = drawn(reader, files["instances_file"])
    assert list(found.values()) == [{"the cow", "a cat"}, {"a cat"}, {"the dog"}]


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
