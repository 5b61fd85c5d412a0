"""Folders of exports: what is in them, what they may replace, what is left when something fails."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from dataset_files import write_image
from found import Result, region, result
from PIL import Image
from pycocotools.coco import COCO

from flmm_detseg.datasets import COCOInstancesDataset
from flmm_detseg.errors import ConfigError, RunError
from flmm_detseg.inference.export.folder import check_exports, exporting
from flmm_detseg.inference.regions import Region
from flmm_detseg.utils.choices import EXPORT_FORMATS


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    (tmp_path / "photos").mkdir()
    files = [tmp_path / "photos" / name for name in ("a.png", "b.png")]
    for number, file in enumerate(files):
        write_image(file, number)
    return files


def of(file: Path, *labels: str):
    size = np.asarray(Image.open(file)).shape[:2]
    masks = [np.zeros(size, dtype=bool) for _ in labels]
    for index, mask in enumerate(masks):
        mask[1 : 4 + index, 2:6] = True
    return result(
        *(region(mask, label, 0.5 + i / 10) for i, (mask, label) in enumerate(zip(masks, labels))), size=size
    )


def export(out: Path, *found: tuple[Result, Path]) -> None:
    with exporting(["coco"], out) as exports:
        for one, image in found:
            exports.add(one, image)


def test_all_formats_of_two_images(photos, tmp_path, capsys):
    out = tmp_path / "out"
    with exporting(EXPORT_FORMATS, out, polygon_tolerance=0.0, url_prefix="x/") as exports:
        exports.add(of(photos[0], "star", "ring"), photos[0])
        exports.add(of(photos[1], "ring"), photos[1])
        assert not (out / "coco").exists()  # complete or absent
    assert sorted(path.name for path in out.iterdir()) == sorted(EXPORT_FORMATS)
    assert {name: figures["images"] for name, figures in exports.figures.items()} == dict.fromkeys(
        EXPORT_FORMATS, 2
    )
    for name in EXPORT_FORMATS:
        manifest = json.loads((out / name / "export.json").read_text())
        assert manifest["format"] == name
        assert exports.figures[name]["folder"] == str(out / name)
    coco = COCO(str(out / "coco" / "annotations.json"))
    capsys.readouterr()
    assert [coco.imgs[a["image_id"]]["file_name"] for a in coco.anns.values()] == ["a.png", "a.png", "b.png"]
    assert exports.figures["coco"]["polygons"] == 3
    dataset = COCOInstancesDataset(
        str(out / "coco" / "annotations.json"), str(photos[0].parent), with_masks=True
    )
    assert dataset.classes == ("star", "ring")
    tasks = json.loads((out / "label-studio" / "tasks.json").read_text())
    assert [task["data"]["image"] for task in tasks] == ["x/a.png", "x/b.png"]
    assert "<BrushLabels" in (out / "label-studio" / "labeling_config.xml").read_text()
    yolo = out / "yolo"
    assert (yolo / "classes.txt").read_text() == "star\nring\n"
    assert [line[0] for line in (yolo / "labels" / "a.txt").read_text().splitlines()] == ["0", "1"]
    assert [line[0] for line in (yolo / "labels" / "b.txt").read_text().splitlines()] == ["1"]
    assert (yolo / "images" / "b.png").read_bytes() == photos[1].read_bytes()
    panoptic = json.loads((out / "panoptic" / "panoptic.json").read_text())
    for entry in panoptic["annotations"]:
        assert (out / "panoptic" / "panoptic" / entry["file_name"]).is_file()
    assert exports.figures["panoptic"]["overlap_pixels"] == 3 * 4


def test_an_export_replaces_an_export_and_nothing_else(photos, tmp_path):
    for labels in (("star",), ("ring",)):
        with exporting(["yolo"], tmp_path / "out") as exports:
            exports.add(of(photos[0], *labels), photos[0])
    assert (tmp_path / "out" / "yolo" / "classes.txt").read_text() == "ring\n"
    mine = tmp_path / "mine" / "coco" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(ConfigError, match="no export of ours"):
        check_exports(["coco"], tmp_path / "mine")
    with pytest.raises(ConfigError, match="no export of ours"), exporting(["coco"], tmp_path / "mine"):
        pytest.fail("nothing may be written")
    assert mine.read_text() == "mine"


def test_a_failure_leaves_the_earlier_export(photos, tmp_path):
    with exporting(["coco"], tmp_path) as exports:
        exports.add(of(photos[0], "star"), photos[0])
    before = (tmp_path / "coco" / "annotations.json").read_text()
    broken = result(Region("segment", "a", float("inf"), (0.0, 0.0, 1.0, 1.0), np.ones((2, 2), dtype=bool)))
    with pytest.raises(RunError):
        export(tmp_path, (of(photos[1], "ring"), photos[1]), (broken, photos[0]))
    assert (tmp_path / "coco" / "annotations.json").read_text() == before


def test_images_of_one_name_are_refused(photos, tmp_path):
    star = of(photos[0], "star")
    with pytest.raises(ConfigError, match="have one name"):
        export(tmp_path, (star, photos[0]), (star, tmp_path / "other" / "a.jpg"))


def test_an_unknown_format_is_named():
    with pytest.raises(ConfigError, match="did you mean `coco`"):
        check_exports(["coc"], "out")
