"""Files of other tools: every row of the table in docs/own_data.md is read, counted and evaluated as by hand."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from export_files import DRAWN, EXPORTS, SIZE, Export
from mmengine.structures import InstanceData
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from flmm_detseg.datasets import COCOInstancesDataset
from flmm_detseg.datasets.checks import check_dataset
from flmm_detseg.errors import DataError
from flmm_detseg.evaluation import box_record, coco_figures

DOCS = Path(__file__).parents[2] / "docs/own_data.md"
NAMES = ["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"]
NAMES += ["AR@1", "AR@10", "AR@100", "AR_small", "AR_medium", "AR_large"]


@pytest.fixture(params=EXPORTS)
def export(request: pytest.FixtureRequest, tmp_path: Path) -> Export:
    return EXPORTS[request.param](tmp_path)


def read(export: Export, **settings) -> COCOInstancesDataset:
    return COCOInstancesDataset(export.ann_file, export.image_dir, **settings)


@pytest.mark.case("data/22_roboflow_group_category")
@pytest.mark.case("data/02_annotation_id_0_makes_ap_0")
def test_counts_are_those_by_hand(export):
    dataset = read(export, with_masks=export.with_masks)
    seen = Counter(thing.name for thing in export.things if not thing.crowd)
    counts = dataset.report()
    assert counts["records"] == 2
    assert counts["objects"] == 3
    assert counts["objects_by_class"] == {name: seen[name] for name in dataset.classes}
    assert counts["classes_without_objects"] == list(export.unused)
    assert counts["crowds"] == sum(thing.crowd for thing in export.things)
    assert counts["cut_at_the_frame"] == 1
    config = dict(ann_file=export.ann_file, image_dir=export.image_dir, with_masks=export.with_masks)
    check = check_dataset("export", dict(type="COCOInstancesDataset", **config))
    assert check.problems == []
    assert {**counts, **check.figures()} == {**check.figures(), **counts}
    for index in range(2):
        sample = dataset[index]
        expected = [
            [x, y, min(x + w, SIZE[1]), min(y + h, SIZE[0])]
            for x, y, w, h in (thing.box for thing in export.things if thing.picture == index)
        ]
        assert sample.dense.boxes_xyxy.tolist() == expected
        if export.with_masks:
            areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in expected]
            assert sample.dense.masks.sum((1, 2)).tolist() == areas


def detections(export: Export) -> list[tuple[int, str, tuple[float, float, float, float], float]]:
    """Picture, class, box (x, y, w, h) and score: two good boxes, a shifted one, one that is not there."""
    found = [
        (thing.picture, thing.name, (thing.box[0] - k, thing.box[1] + k, *thing.box[2:]), 0.9 - k / 10)
        for k, thing in enumerate(DRAWN)
    ]
    return [*found, (1, "kettle", (1.0, 15.0, 9.0, 9.0), 0.95)]


def by_pycocotools(export: Export) -> list[float]:
    """The file cleaned by hand, the published script called as its authors do."""
    ids = {"kettle": 1, "mug": 2, "kitchen": 3}
    truth = COCO()
    truth.dataset = {
        "images": [{"id": k, "height": SIZE[0], "width": SIZE[1]} for k in (1, 2)],
        "categories": [{"id": number, "name": name} for name, number in ids.items()],
        "annotations": [
            {
                "id": number, "image_id": thing.picture + 1, "category_id": ids[thing.name], "bbox": list(thing.box),
                "area": thing.area, "iscrowd": int(thing.crowd),
            }
            for number, thing in enumerate(export.things, start=1)
        ],
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found = truth.loadRes(
            [
                {"image_id": picture + 1, "category_id": ids[name], "bbox": list(box), "score": score}
                for picture, name, box, score in detections(export)
            ]
        )
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return list(evaluation.stats)


@pytest.mark.case("data/02_annotation_id_0_makes_ap_0")
@pytest.mark.case("data/03_annotation_file_without_area_or_iscrowd")
def test_both_backends_say_what_the_published_script_says(export):
    dataset = read(export)
    if backwards := json.loads(Path(export.ann_file).read_text())["annotations"][len(export.things) :]:
        content = json.loads(Path(export.ann_file).read_text())
        content["annotations"] = [entry for entry in content["annotations"] if entry not in backwards]
        Path(export.ann_file).write_text(json.dumps(content))
    records = []
    for index in range(2):
        mine = [item for item in detections(export) if item[0] == index]
        boxes = torch.tensor([[x, y, x + w, y + h] for _, _, (x, y, w, h), _ in mine])
        labels = torch.tensor([dataset.classes.index(name) for _, name, _, _ in mine])
        scores = torch.tensor([score for *_, score in mine])
        found = InstanceData(bboxes=boxes.float(), labels=labels, scores=scores)
        records.append(box_record(dataset[index], found))
    expected = by_pycocotools(export)
    assert 0.2 < expected[0] < 0.9
    backends = ["pycocotools", *(["faster"] if importlib.util.find_spec("faster_coco_eval") else [])]
    for backend in backends:
        figures = coco_figures(records, dataset.classes, annotation_file=export.ann_file, backend=backend)
        assert [figures.get(name, -1) for name in NAMES] == pytest.approx(expected, abs=1e-9)


def test_the_table_has_a_row_for_every_tool():
    table = DOCS.read_text(encoding="utf-8").split("| exported by |")[1].split("\n\n")[0]
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    assert [re.split(r"[,(]", row)[0].strip() for row in rows] == list(EXPORTS)


def test_a_backwards_rectangle_is_left_out_and_counted(tmp_path):
    assert read(EXPORTS["labelme"](tmp_path)).dropped == {"degenerate box": ["annotation 4"]}


def test_one_file_of_labelme_itself_is_reported(tmp_path):
    own = {
        "version": "5.5.0",
        "flags": {},
        "shapes": [],
        "imagePath": "a.png",
        "imageHeight": 30,
        "imageWidth": 40,
    }
    (tmp_path / "a.json").write_text(json.dumps(own))
    with pytest.raises(DataError, match="a.json: key `images` is missing"):
        COCOInstancesDataset(str(tmp_path / "a.json"), str(tmp_path))


def test_crowds_of_brush_masks_are_read_as_such(tmp_path):
    dataset = read(EXPORTS["CVAT"](tmp_path))
    assert dataset[1].dense.crowd.tolist() == [False, True]
    with pytest.raises(DataError, match="annotation 1: mask: no polygon"):
        read(EXPORTS["CVAT"](tmp_path), with_masks=True)
    assert np.asarray(dataset[1].dense.boxes_xyxy).shape == (2, 4)
