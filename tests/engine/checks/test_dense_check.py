"""The data check on boxes, label maps, conversations and mixes of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from dataset_files import write_image
from PIL import Image

from flmm_detseg.datasets import COCOInstancesDataset
from flmm_detseg.datasets.checks import find_datasets
from flmm_detseg.datasets.tinyworld.world import WorldSpec, write_world
from flmm_detseg.engine.checks.data_check import check_data
from flmm_detseg.errors import DataError


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world")
    write_world(out, WorldSpec(20, 4), progress=False)
    return out


def configs(world: Path) -> dict[str, dict]:
    ann_file = str(world / "coco/annotations/instances_val2017.json")
    coco = dict(type="COCOInstancesDataset", ann_file=ann_file, image_dir=str(world / "coco/val2017"))
    masks = dict(coco, with_masks=True)
    semantic = dict(
        type="SemanticMapsDataset", label_dir=str(world / "ade/annotations/training"),
        image_dir=str(world / "coco/train2017"), classes="tinyworld", reduce_zero_label=True,
    )  # fmt: skip
    llava = dict(
        type="LLaVAInstructDataset", file=str(world / "llava/val.json"), image_dir=str(world / "coco")
    )
    return {"boxes": coco, "masks": masks, "maps": semantic, "llava": llava}


def test_good_data_has_no_problem_and_every_kind_is_drawn(world, tmp_path):
    joint = dict(
        type="JointDataset", dataset=configs(world)["masks"], sections=["detections", "segmentations"],
        mask_form="seg",
    )  # fmt: skip
    figures, num_problems = check_data({**configs(world), "joint": joint}, str(tmp_path / "sheet.png"), 1)
    assert num_problems == 0
    counts = figures["data_sets"]
    assert counts["boxes"]["objects"] == counts["masks"]["objects"] == counts["joint"]["phrases"] > 20
    assert "objects" not in counts["maps"]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (3 * 380, 2 * 360)
        pixels = np.asarray(sheet.convert("RGB"))
    for row, column in np.ndindex(2, 3):
        tile = pixels[row * 360 : row * 360 + 360, column * 380 : column * 380 + 380]
        assert (len(np.unique(tile.reshape(-1, 3), axis=0)) > 50) == (row * 3 + column < 5)


def test_objects_that_a_joint_text_has_no_room_for_are_counted(world):
    joint = dict(type="JointDataset", dataset=configs(world)["boxes"], max_characters=60)
    figures, _ = check_data({"joint": joint})
    counts = figures["data_sets"]["joint"]
    assert 0 < counts["dropped"]["object without room in the text"] < counts["objects"]


def test_every_fault_is_listed(world, tmp_path, capsys):
    content = json.loads(Path(configs(world)["boxes"]["ann_file"]).read_text())
    content["annotations"][0]["bbox"] = None
    content["annotations"][-1]["category_id"] = 999
    content["images"][1]["file_name"] = "gone.png"
    (tmp_path / "bad.json").write_text(json.dumps(content))
    conversations = json.loads((world / "llava/val.json").read_text())
    conversations[0]["conversations"].pop()
    conversations[1]["conversations"][2]["from"] = "system"
    (tmp_path / "bad_llava.json").write_text(json.dumps(conversations))
    (tmp_path / "maps").mkdir()
    Image.fromarray(np.full((5, 5), 99, np.uint8)).save(tmp_path / "maps/000000000001.png")
    Image.fromarray(np.full((5, 5), 1, np.uint8)).save(tmp_path / "maps/nothing.png")
    good = configs(world)
    figures, num_problems = check_data(
        {
            "coco": dict(good["masks"], ann_file=str(tmp_path / "bad.json")),
            "llava": dict(good["llava"], file=str(tmp_path / "bad_llava.json")),
            "maps": dict(good["maps"], label_dir=str(tmp_path / "maps")),
        }
    )
    lines = capsys.readouterr().out.splitlines()
    assert num_problems == len(lines) == 7
    kinds = {name: data["problems_by_kind"] for name, data in figures["data_sets"].items()}
    assert kinds == {
        "coco": {"bad box": 1, "unknown category": 1, "missing image": 1},
        "llava": {"malformed conversation": 2},
        "maps": {"missing image": 1, "size mismatch": 1},
    }


def test_members_of_mixes_and_wrappers_are_found(world):
    parts = configs(world)
    joint = dict(type="JointDataset", dataset=parts["masks"], answers=parts["llava"], sections=["answer"])
    mix = dict(
        type="MultiTaskMix", datasets=dict(det=parts["boxes"], joint=joint), ratios=dict(det=1, joint=1)
    )
    found = dict(find_datasets(dict(train_dataloader=dict(dataset=mix))))
    assert found == {
        "train_dataloader.dataset.datasets.det": parts["boxes"],
        "train_dataloader.dataset.datasets.joint.dataset": parts["masks"],
        "train_dataloader.dataset.datasets.joint.answers": parts["llava"],
    }


def own_coco(
    folder: Path, annotations: list[dict], categories: tuple[str, ...] = ("mug",), **changes
) -> dict:
    """One image of 30 x 40 (H x W) with annotations of the first category."""
    write_image(folder / "a.png", 1, (30, 40))
    entries = [
        {"id": k, "image_id": 1, "category_id": 1, "iscrowd": 0, **a} for k, a in enumerate(annotations)
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 30, "width": 40}],
        "annotations": entries,
        "categories": [{"id": k, "name": name} for k, name in enumerate(categories, start=1)],
        **changes,
    }
    (folder / "own.json").write_text(json.dumps(content))
    return dict(type="COCOInstancesDataset", ann_file=str(folder / "own.json"), image_dir=str(folder))


def checked(config: dict) -> tuple[dict, int, COCOInstancesDataset]:
    figures, num_problems = check_data({"own": config})
    reader = {key: value for key, value in config.items() if key != "type"}
    return figures["data_sets"]["own"], num_problems, COCOInstancesDataset(**reader)


OTHER = "boxes of another convention"


def polygon(x: float, y: float, w: float, h: float) -> list[list[float]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


@pytest.mark.case("data/05_every_object_is_a_crowd")
@pytest.mark.case("data/22_roboflow_group_category")
def test_what_is_learned_and_what_is_left_out_is_one_count(tmp_path):
    """A hand count: two mugs (one leaves the image), a crowd, a box outside, and a class that never occurs."""
    annotations = [
        dict(bbox=[5, 5, 10, 10]), dict(bbox=[30, 20, 20, 5]), dict(bbox=[0, 0, 9, 9], iscrowd=1),
        dict(bbox=[50, 5, 4, 4]),
    ]  # fmt: skip
    counts, num_problems, reader = checked(own_coco(tmp_path, annotations, ("mug", "Kitchen")))
    expected = {
        "objects": 2, "crowds": 1, "cut_at_the_frame": 1, "objects_by_class": {"mug": 2, "Kitchen": 0},
        "classes_without_objects": ["Kitchen"],
    }  # fmt: skip
    assert num_problems == 0
    assert {key: counts[key] for key in expected} == expected
    assert {key: reader.report()[key] for key in expected} == expected
    assert counts["dropped"] == reader.report()["dropped"] == {"degenerate box": 1}


@pytest.mark.case("data/05_every_object_is_a_crowd")
@pytest.mark.parametrize(
    ("annotations", "text"),
    [
        ([dict(bbox=[5, 5, 9, 9], iscrowd=1)] * 3, "no object to learn from in 1 images: 3 are crowds"),
        ([dict(bbox=[50, 5, 9, 9])], "0 are crowds .*, 1 have no area inside their image"),
        ([], "no object to learn from in 1 images: 0 are crowds"),
    ],
)
def test_nothing_to_learn_is_a_problem(tmp_path, capsys, annotations, text):
    counts, num_problems, _ = checked(own_coco(tmp_path, annotations))
    assert num_problems == 1
    assert counts["problems_by_kind"] == {"nothing to learn": 1}
    assert re.search(text, capsys.readouterr().out)


def test_label_maps_of_unknown_pixels_teach_nothing(tmp_path):
    (tmp_path / "maps").mkdir()
    write_image(tmp_path / "images" / "a.png", 1, (30, 40))
    config = dict(
        type="SemanticMapsDataset", label_dir=str(tmp_path / "maps"), image_dir=str(tmp_path / "images"),
        classes=["road", "sky"], reduce_zero_label=True,
    )  # fmt: skip
    for value, expected in ((0, ({"nothing to learn": 1}, ["road", "sky"])), (2, ({}, ["road"]))):
        Image.fromarray(np.full((30, 40), value, np.uint8)).save(tmp_path / "maps/a.png")
        counts = check_data({"maps": config})[0]["data_sets"]["maps"]
        assert (counts["problems_by_kind"], counts["classes_without_pixels"]) == expected


@pytest.mark.case("data/05_every_object_is_a_crowd")
@pytest.mark.parametrize("value", ["0", "1", "false", 2, 0.5, [], float("nan")])
def test_crowd_is_a_flag(tmp_path, value):
    config = own_coco(tmp_path, [dict(bbox=[5, 5, 9, 9], iscrowd=value), dict(bbox=[5, 5, 9, 9])])
    figures, num_problems = check_data({"own": config})
    assert num_problems == 1
    with pytest.raises(DataError, match=r"own.json: annotation 0: .*`iscrowd` is .*; it must be 0 or 1"):
        COCOInstancesDataset(ann_file=config["ann_file"], image_dir=config["image_dir"])


@pytest.mark.parametrize(
    ("value", "crowd"), [(None, False), (False, False), (0.0, False), (True, True), (1.0, True)]
)
def test_a_crowd_is_written_in_several_ways(tmp_path, value, crowd):
    config = own_coco(tmp_path, [dict(bbox=[5, 5, 9, 9], iscrowd=value)])
    reader = COCOInstancesDataset(ann_file=config["ann_file"], image_dir=config["image_dir"])
    assert reader[0].dense.crowd.tolist() == [crowd]


@pytest.mark.case("data/20_boxes_of_another_convention")
@pytest.mark.parametrize(
    ("boxes", "kinds", "remarks", "cut"),
    [
        # as corners: read as x, y, width, height all of them leave the image
        ([[20 + k, 15, 38, 29] for k in range(4)], {OTHER: 1}, {}, 4),
        # parts of the image instead of pixels
        ([[k / 10, 0.2, 0.3, 0.4] for k in range(4)], {OTHER: 1}, {"box under one pixel": 4}, 0),
        # two boxes that touch the frame, two thin ones: plausible as a whole, but reported
        ([[20, 15, 30, 5], [5, 5, 9, 9], [1, 1, 0.4, 5], [2, 2, 8, 8]], {}, {"box under one pixel": 1}, 1),
        ([[5, 5, 9, 9], [-0.001, 2, 8, 8], [30, 20, 10.004, 10]], {}, {}, 0),
    ],
)  # fmt: skip
def test_boxes_of_another_convention_are_reported(tmp_path, boxes, kinds, remarks, cut):
    counts, _, reader = checked(own_coco(tmp_path, [dict(bbox=box) for box in boxes]))
    assert counts["problems_by_kind"] == kinds
    assert counts.get("remarks_by_kind", {}) == remarks
    assert counts["cut_at_the_frame"] == reader.report()["cut_at_the_frame"] == cut


@pytest.mark.case("data/20_boxes_of_another_convention")
def test_boxes_apart_from_their_masks_are_reported(tmp_path, capsys):
    apart = dict(bbox=[1, 1, 8, 8], segmentation=polygon(25, 18, 13, 10))
    good = dict(bbox=[25, 18, 13, 10], segmentation=polygon(25, 18, 13, 10))
    config = {**own_coco(tmp_path, [apart]), "with_masks": True}
    assert checked(config)[0]["problems_by_kind"] == {"boxes of another convention": 1}
    capsys.readouterr()
    counts, num_problems, _ = checked({**own_coco(tmp_path, [good, apart, good]), "with_masks": True})
    assert (num_problems, counts["remarks_by_kind"]) == (0, {"box apart from its mask": 1})
    assert "own.json: annotation 1: its box holds 0 of the 130 pixels of its mask" in capsys.readouterr().out


@pytest.mark.case("data/09_one_file_under_two_image_ids")
@pytest.mark.parametrize("second", ["a.png", "./a.png", "x/../a.png", ".\\a.png"])
def test_one_file_under_two_ids_leaves_both_out(tmp_path, second):
    write_image(tmp_path / "b.png", 2, (30, 40))
    (tmp_path / "x").mkdir()
    images = [
        {"id": k, "file_name": name, "height": 30, "width": 40} for k, name in ((1, "a.png"), (2, second), (3, "b.png"))
    ]  # fmt: skip
    boxes = [dict(bbox=[5, 5, 9, 9], image_id=k) for k in (1, 2, 3)]
    config = own_coco(tmp_path, boxes, images=images)
    counts = check_data({"own": config})[0]["data_sets"]["own"]
    assert counts["problems_by_kind"] == {"duplicate file": 1}
    assert counts["objects"] == 1
    with pytest.raises(DataError, match=r"image 2: .* is image 1 already"):
        COCOInstancesDataset(ann_file=config["ann_file"], image_dir=config["image_dir"])
    reader = COCOInstancesDataset(ann_file=config["ann_file"], image_dir=config["image_dir"], policy="skip")
    assert [record.image_id for record in reader.records] == [3]


@pytest.mark.case("data/07_infinity_and_long_integers")
@pytest.mark.parametrize(
    "change",
    [
        dict(height=float("inf")), dict(height=float("nan")), dict(width=1e999), dict(height="30x"), dict(id=1e999),
        dict(file_name="a" * 5000), dict(file_name=None), dict(file_name="a\0.png"),
        dict(file_name="data:image/png;base64,AAAA"),
        dict(height=10**400), dict(id=None), dict(height=True),
    ],
)  # fmt: skip
def test_a_faulty_image_is_a_problem_and_the_rest_is_read(tmp_path, change):
    write_image(tmp_path / "b.png", 2, (30, 40))
    images = [{"id": 1, "file_name": "a.png", "height": 30, "width": 40} | change]
    images += [{"id": 2, "file_name": "b.png", "height": 30, "width": 40}]
    config = own_coco(tmp_path, [dict(bbox=[5, 5, 9, 9], image_id=2)], images=images)
    counts = check_data({"own": config})[0]["data_sets"]["own"]
    assert (counts["records"], counts["objects"], counts["problems"]) == (1, 1, 1)


@pytest.mark.case("data/07_infinity_and_long_integers")
@pytest.mark.parametrize(
    "change",
    [
        dict(bbox=[5, 5, 10**400, 9]), dict(bbox=[5, 5, 1e999, 9]), dict(bbox=["5", 5, 9, 9]), dict(area=1e999),
        dict(category_id=1e999), dict(category_id=None), dict(category_id="one"), dict(id=float("nan")),
        dict(pseudo=True, score=10**400), dict(bbox={}), dict(image_id=True),
    ],
)  # fmt: skip
def test_a_faulty_annotation_is_a_problem_and_the_rest_is_read(tmp_path, change):
    write_image(tmp_path / "b.png", 2, (30, 40))
    images = [{"id": k, "file_name": n, "height": 30, "width": 40} for k, n in ((1, "a.png"), (2, "b.png"))]
    annotations = [dict(bbox=[5, 5, 9, 9]) | change, dict(bbox=[5, 5, 9, 9], image_id=2)]
    counts = check_data({"own": own_coco(tmp_path, annotations, images=images)})[0]["data_sets"]["own"]
    assert counts["problems"] == 1
    assert counts["objects"] == 1


def test_a_name_of_another_system_is_found_and_a_missing_folder_named(tmp_path):
    write_image(tmp_path / "images" / "a.png", 1, (30, 40))
    config = own_coco(tmp_path, [dict(bbox=[5, 5, 9, 9])])
    content = json.loads(Path(config["ann_file"]).read_text())
    content["images"][0]["file_name"] = "images\\a.png"
    Path(config["ann_file"]).write_text(json.dumps(content))
    reader = COCOInstancesDataset(config["ann_file"], str(tmp_path))
    assert reader.records[0].path == tmp_path / "images/a.png"
    with pytest.raises(DataError, match="a.png is there: give the folder that `file_name` starts from"):
        COCOInstancesDataset(config["ann_file"], str(tmp_path / "images"))
