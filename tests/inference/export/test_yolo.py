"""YOLO labels, drawn as trainings draw them (OpenCV) and by a count of crossings."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from found import masks, region, result
from hypothesis import assume, given, settings

from flmm_detseg.inference.export.yolo import YoloLabels
from flmm_detseg.inference.regions import Region
from flmm_detseg.ops.outlines import pixel_outlines


def polygon_of(line: str, size: tuple[int, int]) -> tuple[int, np.ndarray]:
    """Class and points in pixels."""
    number, *shares = line.split()
    points = np.array(list(map(float, shares))).reshape(-1, 2)
    assert len(points) >= 3
    assert 0 <= points.min() <= points.max() <= 1
    return int(number), points * (size[1], size[0])


def near(mask: np.ndarray) -> np.ndarray:
    """Pixels at most one from the mask."""
    return cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)


@settings(max_examples=50, deadline=None)
@given(masks())
def test_objects_without_holes_are_within_a_pixel(mask):
    outlines = pixel_outlines(mask)
    assume(len(outlines.outer) == 1 and not outlines.holes)
    _, points = polygon_of(YoloLabels().add(result(region(mask))), mask.shape)
    drawn = np.zeros(mask.shape, np.uint8)
    cv2.fillPoly(drawn, [points.astype(np.int32)], 1)  # cut off, as trainings do
    assert not (drawn.astype(bool) & ~near(mask)).any()
    assert not (mask & ~near(drawn.astype(bool))).any()


@settings(max_examples=50, deadline=None)
@given(masks())
def test_parts_and_holes_are_in_one_line(mask):
    """By the even-odd rule at pixel centres the one polygon is the mask itself."""
    assume(mask.any())
    labels = YoloLabels()
    (line,) = labels.add(result(region(mask))).splitlines()
    _, points = polygon_of(line, mask.shape)
    outlines = pixel_outlines(mask)
    assert labels.counts.bridged == (len(outlines.outer) + len(outlines.holes) > 1)
    height, width = mask.shape
    y, x = np.mgrid[:height, :width] + np.array([0.4961, 0.4987])[:, None, None]  # on no bridge
    inside = np.zeros(mask.shape, dtype=bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        crossed = (y0 > y) != (y1 > y)
        with np.errstate(divide="ignore", invalid="ignore"):
            inside ^= crossed & (x < x0 + (y - y0) / (y1 - y0) * (x1 - x0))
    np.testing.assert_array_equal(inside, mask)


def test_classes_are_numbered_as_they_come():
    mask = np.ones((4, 8), dtype=bool)
    labels = YoloLabels()
    text = labels.add(
        result(
            region(mask, "a star"),
            region(mask, "a: ring"),
            Region("detect", "a star", 0.5, (2.0, 1.0, 4.0, 3.0)),
            Region("detect", "far", 0.5, (2.0, 1.0, 2.0, 3.0)),
            region(np.zeros_like(mask), "nothing"),
        )
    )
    first, second, third = map(str.split, text.splitlines())
    assert [first[0], second[0], third[0]] == ["0", "1", "0"]
    assert list(map(float, third[1:])) == [0.25, 0.25, 0.5, 0.25, 0.5, 0.75, 0.25, 0.75]
    assert labels.classes == ("a star", "a: ring", "far", "nothing")
    assert labels.counts == (3, 0, 1, 2)
    yaml = pytest.importorskip("yaml").safe_load(labels.data_yaml())
    assert yaml["names"] == dict(enumerate(labels.classes))
    assert pytest.importorskip("yaml").safe_load(YoloLabels().data_yaml())["names"] == {}
