from __future__ import annotations

import json
import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from fake_dense import CLASSES, disturbed_map, make_dense_samples
from mmengine.config import ConfigDict

from flmm_detseg.compat import install
from flmm_detseg.errors import ConfigError, DataError, RunError
from flmm_detseg.evaluation import SemSegMetric, semseg_figures, semseg_record
from flmm_detseg.evaluation.semseg_records import band_counts, contour_counts
from flmm_detseg.registry import METRICS
from flmm_detseg.structures import DenseTargets, Sample

NAMES = (*CLASSES, "ground")
SAMPLES = make_dense_samples(12)


@pytest.fixture(scope="module")
def records() -> list[dict]:
    return [semseg_record(sample, disturbed_map(sample), 4) for sample in SAMPLES]


def map_sample(target: list[list[int]] | np.ndarray) -> Sample:
    semantic = np.asarray(target, dtype=np.uint8)
    image = np.zeros((*semantic.shape, 3), np.uint8)
    return Sample("map/1", image, "", (), task="segmentation", dense=DenseTargets(semantic=semantic))


def figures_of(target, prediction, num_classes: int = 2, **options: float) -> dict[str, float]:
    record = semseg_record(map_sample(target), np.asarray(prediction, dtype=np.int64), num_classes, **options)
    return semseg_figures([record], num_classes)


def halves(column: int, width: int = 10) -> np.ndarray:
    """Class 0 left of a column, class 1 from it on."""
    return np.repeat((np.arange(width) >= column)[None].astype(np.int64), 10, axis=0)


def test_mmseg_agrees(records):
    install()
    from mmseg.evaluation import IoUMetric

    metric = IoUMetric(iou_metrics=["mIoU"])
    metric.dataset_meta = {"classes": NAMES}
    parts = [
        IoUMetric.intersect_and_union(
            disturbed_map(s), torch.from_numpy(s.dense.semantic.astype(np.int64)), 4, 255
        )
        for s in SAMPLES
    ]
    expected = metric.compute_metrics(parts)
    figures = semseg_figures(records, 4)
    for name in ("mIoU", "aAcc", "mAcc"):
        assert 100 * figures[name] == pytest.approx(expected[name], abs=6e-3)  # rounded by mmseg
    confusion = np.zeros((4, 4), dtype=int)
    for record in records:
        for target, predicted, pixels in record["confusion"]:
            confusion[target, predicted] += pixels
    intersection, union, predicted, target = (sum(values).numpy() for values in zip(*parts, strict=True))
    assert (np.diag(confusion) == intersection).all()
    assert (confusion.sum(0) == predicted).all()
    assert (confusion.sum(1) == target).all()
    ious = semseg_figures(records, 4, NAMES)
    assert [ious[f"IoU/{name}"] for name in NAMES] == pytest.approx((intersection / union).tolist())


def test_figures_by_hand():
    # 12 known pixels; class 0: 4 of 5 right, class 1: 5 of 7; class 2 is only predicted.
    target = [[0, 0, 0, 1], [0, 0, 1, 1], [1, 1, 1, 1], [255, 255, 255, 255]]
    prediction = [[0, 0, 0, 1], [0, 1, 1, 1], [1, 1, 0, 2], [2, 2, 2, 2]]
    figures = figures_of(target, prediction, num_classes=4)
    assert figures["aAcc"] == 9 / 12
    assert figures["mAcc"] == pytest.approx((4 / 5 + 5 / 7) / 2)
    assert figures["mIoU"] == pytest.approx((4 / 6 + 5 / 8 + 0) / 3)
    assert figures["num_classes_present"] == 2


def test_perfect_and_unknown():
    target = halves(4)
    figures = figures_of(target, target)
    assert [figures[name] for name in ("mIoU", "aAcc", "mAcc", "boundary_F1", "boundary_IoU")] == [1.0] * 5
    nothing = figures_of(np.full((10, 10), 255), target)
    assert nothing == {"num_images": 1, "num_classes_present": 0}


@pytest.mark.parametrize(("tolerance", "expected"), [(2, 1.0), (1.5, 0.0), (0.15, 1.0), (0.14, 0.0)])
def test_boundary_f1_of_a_shifted_edge(tolerance, expected):
    # The contour of either class is two columns off; the diagonal is 14.14 pixels.
    assert figures_of(halves(4), halves(6), tolerance=tolerance)["boundary_F1"] == expected


def test_boundary_f1_by_hand():
    # Class 0 is predicted with four columns too many in the two lowest rows.
    prediction = halves(4)
    prediction[8:, :8] = 0
    truth, found = halves(4) == 0, prediction == 0
    valid = np.ones_like(truth)
    # Predicted contour: rows 0-7 in column 3, row 8 in columns 4-7 (class 1 above), row 9 in column 7.
    assert contour_counts(found, truth, valid, 1.0) == (8 + 1, 8 + 5, 8 + 1, 10)
    assert contour_counts(found, truth, valid, 0.9) == (8, 13, 8, 10)
    everything = np.ones((10, 10), dtype=np.int64)
    only_one = figures_of(everything, everything)
    assert only_one["boundary_F1"] == 1  # no contour, none predicted
    assert figures_of(everything, halves(5))["boundary_F1"] == 0


def brute_contours(found, truth, valid, radius):
    def contour(mask):
        height, width = mask.shape
        result = []
        for y, x in np.argwhere(mask):
            steps = [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
            inside = [(v, u) for v, u in steps if 0 <= v < height and 0 <= u < width]
            if any(valid[place] and not mask[place] for place in inside):
                result.append((y, x))
        return result

    edges = [contour(found), contour(truth)]
    counts = []
    for mine, other in (edges, edges[::-1]):
        counts += [sum(any(math.dist(a, b) <= radius for b in other) for a in mine), len(mine)]
    return tuple(counts)


def cheng_band(mask: np.ndarray, width: int) -> np.ndarray:
    """Mask minus what is left of it after eroding it within a frame of zeros."""
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    return mask & ~eroded.astype(bool)


def test_counts_are_those_of_the_definitions():
    rng = np.random.default_rng(0)
    for _ in range(8):
        noise = [cv2.GaussianBlur(rng.normal(size=(24, 31)), (0, 0), 2.5) for _ in range(3)]
        valid = noise[2] < 0.15
        found, truth = (noise[0] > 0) & valid, (noise[0] + 0.6 * noise[1] > 0) & valid
        for radius in (1.0, 2.3):
            assert contour_counts(found, truth, valid, radius) == brute_contours(found, truth, valid, radius)
        full = np.ones_like(valid)
        for width in (1, 3):
            bands = [cheng_band(mask, width) for mask in (found, truth)]
            expected = (bands[0] & bands[1]).sum(), (bands[0] | bands[1]).sum()
            assert band_counts(found, truth, full, width) == expected


def test_edges_of_unknown_areas_are_no_boundary():
    target = np.zeros((20, 20), dtype=np.int64)
    target[5:15, 5:15] = 255
    record = semseg_record(map_sample(target), np.zeros((20, 20), dtype=np.int64), 2)
    assert record["contour"] == [[0, 0, 0, 0, 0]]
    assert record["band"] == [[0, 4 * 19, 4 * 19]]  # the image frame


def test_boundary_iou_by_hand():
    # Bands one pixel wide (2 % of 14 pixels, at least one): class 0 fills 4 (5) of 10 columns.
    frame = {columns: 2 * columns + 2 * 8 for columns in (4, 5, 6)}
    common = 10 + 2 * 4 - 2  # left column, top and bottom rows of the narrower one
    record = semseg_record(map_sample(halves(4)), halves(5), 2)
    bands = {label: (intersection, union) for label, intersection, union in record["band"]}
    assert bands[0] == (common, frame[4] + frame[5] - common)
    figures = semseg_figures([record], 2)
    assert figures["boundary_IoU"] == pytest.approx(
        (bands[0][0] / bands[0][1] + bands[1][0] / bands[1][1]) / 2
    )
    assert figures["boundary_IoU"] < figures["mIoU"]


def test_means_are_over_the_data_set(records):
    again = json.loads(json.dumps([*records[::-1], records[2]]))
    assert semseg_figures(again, 4, NAMES) == semseg_figures(records, 4, NAMES)
    assert 0.3 < semseg_figures(records, 4)["mIoU"] < 0.95
    # Pixels are summed before dividing: not the mean of the images' own figures.
    mean = np.mean([semseg_figures([record], 4)["mIoU"] for record in records])
    assert abs(semseg_figures(records, 4)["mIoU"] - mean) > 1e-3


def test_metric_in_a_loop_and_its_registration(records):
    metric = METRICS.build(ConfigDict(type="SemSegMetric", classwise=True, _scope_="flmm_detseg"))
    with pytest.raises(ConfigError, match="names no `semantic_classes`; set `num_classes`"):
        metric.process({"samples": SAMPLES}, [])
    metric.dataset_meta = {"semantic_classes": NAMES}
    metric.process({"samples": SAMPLES}, [disturbed_map(sample) for sample in SAMPLES])
    figures = metric.evaluate(len(SAMPLES))
    assert figures == {f"semseg/{key}": value for key, value in semseg_figures(records, 4, NAMES).items()}
    other = SemSegMetric(num_classes=4, tolerance=3, band=0.05)
    other.process({"samples": SAMPLES}, [disturbed_map(sample) for sample in SAMPLES])
    wider = other.evaluate(len(SAMPLES))
    assert wider["semseg/boundary_F1"] > figures["semseg/boundary_F1"]
    assert wider["semseg/boundary_IoU"] > figures["semseg/boundary_IoU"]


def test_unusable_input():
    sample = map_sample(halves(4))
    with pytest.raises(RunError, match=r"map/1: the predicted map has shape \(3, 3\), expected \(10, 10\)"):
        semseg_record(sample, torch.zeros(3, 3, dtype=torch.int64), 2)
    with pytest.raises(RunError, match=r"map/1: predicted labels 0 \.\. 1 of 1 classes"):
        semseg_record(sample, halves(4), 1)
    with pytest.raises(DataError, match="map/1: label 1 in the target, of 1 classes"):
        semseg_record(sample, np.zeros((10, 10), dtype=np.int64), 1)
    with pytest.raises(DataError, match="map/1: it has no label map"):
        semseg_record(replace(sample, dense=None), halves(4), 2)
    with pytest.raises(ConfigError, match="`tolerance` is 0"):
        semseg_record(sample, halves(4), 2, tolerance=0)
