"""The reasoning set on disk: LISA's layout, exact polygons, never mixed with another set; version 1 unchanged."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from flmm_detseg.cli import main
from flmm_detseg.datasets import QuestionDataset
from flmm_detseg.datasets.tinyworld.reason.draw import draw_items
from flmm_detseg.datasets.tinyworld.reason.files import MANIFEST, write_reason
from flmm_detseg.datasets.tinyworld.reason.spec import ReasonSpec
from flmm_detseg.datasets.tinyworld.reason_seg import mask_polygons
from flmm_detseg.datasets.tinyworld.world import WorldSpec, write_world
from flmm_detseg.errors import ConfigError

SPEC = ReasonSpec(train_images=12, val_images=3, test_images=12, seed=4)
# Annotations of WorldSpec(28, 11) before there was a second set.
VERSION_1 = "8510d95924589120df2dbd42f7c7a0a1bb6ec7babeccea0677eab9a18015e40d"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("reason") / "reason_seg_v2"
    assert write_reason(out, SPEC, progress=False)["written"]
    return out


def painted(shapes: list, size: tuple[int, int]) -> np.ndarray:
    """As LISA's readers do: the largest polygon first, filled, with its outline."""
    mask = np.zeros(size, np.uint8)
    polygons = [np.array([shape["points"]], np.int32) for shape in shapes]
    for points in sorted(polygons, key=lambda points: -cv2.contourArea(points)):
        cv2.polylines(mask, points, True, 1, 1)
        cv2.fillPoly(mask, points, 1)
    return mask.astype(bool)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_polygons_fill_to_the_masks_and_records_are_those_drawn(folder: Path, split: str) -> None:
    files = sorted((folder / split).glob("*.json"))
    items = list(draw_items(SPEC, split))
    assert len(files) == len(items) == 3 * SPEC.counts()[split]
    for file, item in zip(files, items, strict=True):
        record = json.loads(file.read_text())
        assert record["imagePath"] == f"{file.stem}.jpg"
        picture = np.asarray(Image.open(file.with_suffix(".jpg")))
        size = (record["imageHeight"], record["imageWidth"])
        assert picture.shape == (*size, 3)
        assert np.abs(picture.astype(int) - item.scene.image).mean() < 8
        assert record["is_sentence"] is True
        assert record["text"] == list(item.texts)
        assert record["image_id"] == f"{split}/{file.stem.split('_')[0]}"
        for key, value in (
            ("family", item.query.family),
            ("wording", item.wording),
            ("combination", item.query.combination),
            ("held_out", item.held_out),
            ("absent", item.query.absent),
            ("names", list(item.names)),
        ):
            assert record[key] == value
        assert {shape["group_id"] for shape in record["shapes"]} == set(range(len(item.names)))
        assert all(shape["label"] == "target" and len(shape["points"]) > 2 for shape in record["shapes"])
        for number, obj in enumerate(item.query.targets):
            mine = [shape for shape in record["shapes"] if shape["group_id"] == number]
            assert np.array_equal(painted(mine, size), obj.mask)
        wanted = np.any([np.zeros(size, bool), *(obj.mask for obj in item.query.targets)], axis=0)
        assert np.array_equal(painted(record["shapes"], size), wanted)


def test_specks_have_polygons_of_their_own_where_they_are_asked_for() -> None:
    mask = np.zeros((20, 20), bool)
    mask[2:8, 2:8] = True
    mask[15, 15] = mask[12, 3] = mask[12, 4] = True
    assert len(mask_polygons(mask)) == 1
    shapes = [{"points": points} for points in mask_polygons(mask, with_specks=True)]
    assert np.array_equal(painted(shapes, (20, 20)), mask)


def test_facts_are_question_files(folder: Path) -> None:
    read = {
        name: list(QuestionDataset(str(folder / "facts" / f"{name}.jsonl"), str(folder / "facts")))
        for name in ("train", "test")
    }
    assert len(read["train"]) > len(read["test"]) >= 250
    sample = next(s for s in read["train"] if s.prompt == "could a ring roll ?")
    assert (sample.text, sample.meta["kind"]) == ("yes", "roll")


def digest(folder: Path) -> str:
    content = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return content.hexdigest()


def test_the_same_bytes_again_and_nothing_to_do(folder: Path, tmp_path: Path) -> None:
    write_reason(tmp_path / "again", SPEC, progress=False)
    before = digest(folder)
    assert digest(tmp_path / "again") == before
    assert not write_reason(folder, SPEC, progress=False)["written"]
    assert digest(folder) == before


def test_other_contents_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="another reasoning set"):
        write_reason(folder, ReasonSpec(12, 3, 12, seed=5), progress=False)
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "test" / "000003_1.json").write_text("{}")
    with pytest.raises(ConfigError, match="copy/test changed since it was written. Remove"):
        write_reason(copy, SPEC, progress=False)
    (copy / MANIFEST).unlink()
    with pytest.raises(ConfigError, match=f"no {MANIFEST}"):
        write_reason(copy, SPEC, progress=False)


def test_the_command_writes_it_beside_a_world_that_stays_as_it_was(tmp_path: Path, capsys) -> None:
    out = tmp_path / "world"
    write_world(out, WorldSpec(28, 11), progress=False)
    files = sorted(p for p in out.rglob("*") if p.suffix in (".json", ".jsonl", ".p") and p.name != MANIFEST)
    content = b"".join(str(p.relative_to(out)).encode() + p.read_bytes() for p in files)
    assert hashlib.sha256(content).hexdigest() == VERSION_1
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    words = ["data", "tinyworld", "--out", str(out), "--images", "28", "--seed", "11"]
    with pytest.raises(SystemExit, match="0"):
        main([*words, "--reason", "4", "1", "2"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["reason"]["counts"]["test"]["records"] == 6
    assert not figures["written"]
    assert figures["reason"]["written"]
    assert {path: path.read_bytes() for path in before} == before
    assert len(list((out / "reason_seg_v2" / "train").glob("*.jpg"))) == 12
