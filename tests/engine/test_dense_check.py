"""The data check on boxes, label maps, conversations and mixes of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flmm_detseg.datasets.checks import find_datasets
from flmm_detseg.datasets.tinyworld.world import WorldSpec, write_world
from flmm_detseg.engine.data_check import check_data


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
