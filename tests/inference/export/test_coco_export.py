"""COCO files: pycocotools draws the same masks."""

from __future__ import annotations

import json

import numpy as np
import pytest
from found import masks, region, result
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from flmm_detseg.errors import ConfigError, RunError
from flmm_detseg.inference.export.coco import CocoFile, polygons
from flmm_detseg.inference.regions import Region


def loaded(content: dict, capsys) -> COCO:
    coco = COCO()
    coco.dataset = json.loads(json.dumps(content))
    coco.createIndex()
    capsys.readouterr()
    return coco


@settings(max_examples=50, deadline=None)
@given(st.lists(masks(size=(11, 13)), max_size=4), st.sampled_from([None, 0.0, 0.2]))
def test_masks_come_back(found, tolerance):
    file = CocoFile(tolerance)
    entries = file.add(result(*map(region, found), size=(11, 13)), "a.png")
    kept = [mask for mask in found if mask.any()]
    content = file.content()
    assert len(content["annotations"]) == len(kept) == file.num_rle + file.num_polygons
    assert [entry["id"] is None for entry in entries] == [not mask.any() for mask in found]
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    for entry, mask in zip(content["annotations"], kept, strict=True):
        drawn = coco.annToMask(entry).astype(bool)
        iou = (drawn & mask).sum() / (drawn | mask).sum()
        assert iou >= 1 - (tolerance or 0)
        assert entry["area"] == mask.sum()
        code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        np.testing.assert_array_equal(entry["bbox"], coco_mask.toBbox(code))


def test_holes_and_parts():
    ring, parts = np.ones((7, 7), dtype=bool), np.zeros((7, 7), dtype=bool)
    ring[2:5, 2:5] = False
    parts[0, 0] = parts[3:5, 3:5] = True
    file = CocoFile(0.0)
    file.add(result(region(ring), region(parts)), "a.png")
    with_hole, two = (entry["segmentation"] for entry in file.content()["annotations"])
    assert with_hole["size"] == [7, 7]
    assert len(two) == 2
    assert (file.num_rle, file.num_polygons) == (1, 1)
    assert polygons(ring) is None
    assert polygons(ring, 0.5) is not None  # the hole is 9 of 49 pixels


def test_a_tolerance_saves_points():
    y, x = np.mgrid[:80, :90]
    disc = (x - 40) ** 2 + (y - 41) ** 2 <= 30**2
    (exact,), (near,) = polygons(disc), polygons(disc, 0.03)
    assert len(near) < len(exact) / 3
    drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([near], *disc.shape))).astype(bool)
    assert (drawn & disc).sum() / (drawn | disc).sum() >= 0.97


def test_an_image_that_occurs_again_keeps_its_id():
    file = CocoFile()
    for name in ("a.png", "b.png", "a.png"):
        file.add(result(region(np.ones((2, 3), dtype=bool))), name)
    content = file.content()
    assert [(image["id"], image["file_name"]) for image in content["images"]] == [(1, "a.png"), (2, "b.png")]
    assert [entry["image_id"] for entry in content["annotations"]] == [1, 2, 1]


def test_a_box_without_a_mask(capsys):
    file = CocoFile()
    file.add(result(Region("detect", "cat", 0.7, (1.0, 2.0, 5.0, 4.5))), "a.png")
    (entry,) = loaded(file.content(), capsys).loadAnns([1])
    assert (entry["bbox"], entry["area"], entry["segmentation"]) == ([1.0, 2.0, 4.0, 2.5], 10.0, [])


@pytest.mark.parametrize("tolerance", [-0.1, 1.0, float("nan")])
def test_a_tolerance_that_cannot_be(tolerance):
    with pytest.raises(ConfigError, match="a share of the mask"):
        CocoFile(tolerance)


@pytest.mark.case("model/nan_prediction")
def test_numbers_that_are_none_change_nothing():
    file = CocoFile()
    broken = Region("segment", "a ring", float("nan"), (0.0, 0.0, 1.0, 1.0), np.ones((2, 2), dtype=bool))
    with pytest.raises(RunError, match="'a ring': score nan"):
        file.add(result(region(np.ones((2, 2), dtype=bool)), broken), "a.png")
    assert file.content()["annotations"] == file.content()["images"] == file.content()["categories"] == []
