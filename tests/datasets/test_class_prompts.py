"""Classes of label maps and COCO files as questions, those that are not there too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from dataset_files import SIZE, box_polygon, write_image
from PIL import Image

from flmm_detseg.datasets import ClassPrompts, COCOInstancesDataset, SemanticMapsDataset
from flmm_detseg.datasets.class_names import named_classes
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.language.mask_wording import NOTHING_THERE, PHRASE_QUESTIONS

NAMES = ["road", "sky", "wall-other", "traffic_light", "tree"]


def maps(root: Path, *values: list[int]) -> SemanticMapsDataset:
    """A map an image: a row of each value, the rest unknown."""
    (root / "maps").mkdir()
    for number, rows in enumerate(values):
        write_image(root / "images" / f"{number}.jpg", number)
        label_map = np.full(SIZE, 255, dtype=np.uint8)
        for row, value in enumerate(rows):
            label_map[row] = value
        Image.fromarray(label_map).save(root / "maps" / f"{number}.png")
    return SemanticMapsDataset(str(root / "maps"), str(root / "images"), classes=NAMES)


def coco(root: Path, *, federated: bool = False) -> COCOInstancesDataset:
    """Two dogs, an ear of the first, a crowd of cats; PACO's names."""
    write_image(root / "a.jpg", 1)
    names = ["dog", "dog:ear", "cat", "mouse_(computer_equipment):scroll_wheel", "fish"]
    boxes = [(1, 2, 2, 12, 12), (1, 30, 20, 40, 30), (2, 2, 2, 4, 4), (3, 50, 2, 58, 12)]
    annotations = [
        {
            "id": k, "image_id": 1, "category_id": category, "bbox": [x0, y0, x1 - x0, y1 - y0],
            "segmentation": [box_polygon(x0, y0, x1, y1)], "iscrowd": int(category == 3), "area": 1,
        }
        for k, (category, x0, y0, x1, y1) in enumerate(boxes)
    ]  # fmt: skip
    image = {"id": 1, "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]}
    if federated:
        image["neg_category_ids"] = [5, 77]
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(names)]
    content = {"images": [image], "annotations": annotations, "categories": categories}
    (root / "a.json").write_text(json.dumps(content))
    return COCOInstancesDataset(str(root / "a.json"), str(root), with_masks=True)


def seen(dataset, epochs: int = 60) -> list:
    samples = []
    for epoch in range(epochs):
        dataset.set_epoch(epoch)
        samples += [dataset[k] for k in range(len(dataset))]
    return samples


def test_classes_of_a_map(tmp_path):
    dataset = ClassPrompts(maps(tmp_path, [0, 1, 3], [4]), per_image=2, wordings="first")
    assert len(dataset) == 4
    for epoch in range(10):
        dataset.set_epoch(epoch)
        samples = [dataset[k] for k in range(4)]
        first = [sample.meta["class"] for sample in samples[:2]]
        assert len(set(first)) == 2  # no class twice where there are enough
        assert set(first) <= {"road", "sky", "traffic_light"}
        for sample, index in zip(samples, (0, 0, 1, 1)):
            label = NAMES.index(sample.meta["class"])
            assert np.array_equal(sample.masks[0], dataset.dataset[index].dense.semantic == label)
            assert sample.text == "this is it : [SEG] ."
            assert [sample.phrase_text(k) for k in range(len(sample.phrases))] == ["[SEG]"]
            assert sample.prompt == PHRASE_QUESTIONS[0].format(sample.meta["query"])
            assert (sample.task, sample.dense) == ("reasoning", None)
    assert {s.meta["query"] for s in seen(dataset)} == {"road", "sky", "traffic light", "tree"}
    dataset.set_epoch(3)
    again = [(dataset[k].meta["class"]) for k in (3, 2, 1, 0)]
    assert again[::-1] == [(dataset[k].meta["class"]) for k in range(4)]


def test_classes_that_are_not_there(tmp_path):
    dataset = ClassPrompts(maps(tmp_path, [0, 1, 2], [0, 1, 2]), absent_share=0.25, leave_out="-")
    samples = seen(dataset, 200)
    absent = [sample for sample in samples if sample.meta.get("absent")]
    assert abs(len(absent) / len(samples) - 0.25) < 3 * (0.25 * 0.75 / len(samples)) ** 0.5
    for sample in absent:
        assert (sample.text, sample.phrases, sample.masks.shape) == (NOTHING_THERE, (), (0, *SIZE))
    assert {sample.meta["class"] for sample in absent} == {"traffic_light", "tree"}
    # `wall-other` is there, and never asked for.
    assert {s.meta["class"] for s in samples if not s.meta.get("absent")} == {"road", "sky"}
    assert not any(s.meta.get("absent") for s in seen(ClassPrompts(dataset.dataset), 20))


def test_a_map_without_a_known_pixel_is_asked_for_what_is_not_there(tmp_path):
    dataset = ClassPrompts(maps(tmp_path, []), per_image=1)
    assert dataset[0].text == NOTHING_THERE


def test_objects_of_a_class_are_one_mask(tmp_path):
    reader = coco(tmp_path)
    dataset = ClassPrompts(reader)
    masks = reader[0].dense.masks
    expected = {"dog": masks[0] | masks[1], "dog:ear": masks[2], "cat": masks[3]}
    samples = seen(dataset, 30)
    assert {sample.meta["class"] for sample in samples} == set(expected)
    for sample in samples:
        assert np.array_equal(sample.masks, expected[sample.meta["class"]][None])
    assert {s.meta["query"] for s in samples} == {"dog", "the ear of the dog", "dog ear", "cat"}


def test_incomplete_files_say_what_is_not_there(tmp_path):
    wheel = {"the scroll wheel of the mouse", "mouse scroll wheel"}
    absent = {s.meta["query"] for s in seen(ClassPrompts(coco(tmp_path), absent_share=1))}
    assert absent == wheel | {"fish"}
    reader = coco(tmp_path, federated=True)
    assert reader[0].meta["absent_labels"] == [4]
    assert {s.meta["query"] for s in seen(ClassPrompts(reader, absent_share=1))} == {"fish"}


def test_an_image_that_nothing_can_be_asked_of_is_left_out(tmp_path):
    reader = coco(tmp_path, federated=True)
    content = json.loads((tmp_path / "a.json").read_text())
    write_image(tmp_path / "b.jpg", 2)
    content["images"].append({**content["images"][0], "id": 2, "file_name": "b.jpg", "neg_category_ids": []})
    (tmp_path / "a.json").write_text(json.dumps(content))
    dataset = ClassPrompts(
        COCOInstancesDataset(reader.ann_file, str(tmp_path), with_masks=True), absent_share=0.5
    )
    assert dataset.dropped == {"no class to ask for": ["coco/image-2"]}
    assert len(dataset) == 3
    assert {s.meta["coco_image_id"] for s in seen(dataset, 10)} == {1}


def test_names_of_files(tmp_path):
    (tmp_path / "names.txt").write_text("person\n\nwall-other\n")
    assert named_classes(str(tmp_path / "names.txt")) == ("person", "wall-other")
    config = tmp_path / "config_v2.0.json"
    labels = [{"name": "animal--bird", "readable": "Bird"}, {"name": "x", "readable": "Ground Animal "}]
    config.write_text(json.dumps({"labels": labels}))
    assert named_classes(str(config)) == ("bird", "ground animal")
    for content, match in (
        ({"label": []}, "`labels` is missing"),
        ({"labels": [{"name": "x"}]}, r"labels\[0\].*`readable` is missing"),
        ({"labels": [{"readable": 5}]}, r"labels\[0\].*`readable` is 5"),
    ):
        config.write_text(json.dumps(content))
        with pytest.raises(DataError, match=match):
            named_classes(str(config))


def test_what_is_refused(tmp_path):
    reader = coco(tmp_path)
    with pytest.raises(ConfigError, match="`per_image` is 0"):
        ClassPrompts(reader, per_image=0)
    with pytest.raises(ConfigError, match="`absent_share` is 1.5"):
        ClassPrompts(reader, absent_share=1.5)
    (tmp_path / "one").mkdir()
    one = maps(tmp_path / "one", [2])
    one.classes = ("wall-other",)
    with pytest.raises(ConfigError, match="`leave_out` is '-', which every class has"):
        ClassPrompts(one, leave_out="-")
    with pytest.raises(ConfigError, match="neither label maps nor masks"):
        ClassPrompts(COCOInstancesDataset(str(tmp_path / "a.json"), str(tmp_path)))
    content = json.loads((tmp_path / "a.json").read_text())
    content["images"][0]["neg_category_ids"] = ["x"]
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="`neg_category_ids` is 'x'"):
        COCOInstancesDataset(str(tmp_path / "a.json"), str(tmp_path))
    content["images"][0]["neg_category_ids"] = []
    content["categories"][0]["name"] = "a [SEG]"
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"class 'a \[SEG\]'"):
        ClassPrompts(COCOInstancesDataset(str(tmp_path / "a.json"), str(tmp_path), with_masks=True))
