"""Whole answers: what is counted of boxes, masks and words, against cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from flmm_detseg.evaluation.joint_metric import joint_figures
from flmm_detseg.evaluation.joint_records import answer_boxes, answer_masks, class_of
from flmm_detseg.language import BoxedCaption, JointTemplate
from flmm_detseg.structures import DenseTargets, Sample

CLASSES = ("ring", "traffic light", "light")


def scene(number: int = 1) -> Sample:
    """100 x 100: a ring at the top left, a ring at the top right, a light below; a crowd that nobody counts."""
    boxes = np.array([[0, 0, 40, 40], [60, 0, 100, 40], [0, 60, 40, 100], [90, 90, 99, 99]], dtype=np.float32)
    masks = np.zeros((4, 100, 100), dtype=bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.astype(int), strict=True):
        mask[y0:y1, x0:x1] = True
    dense = DenseTargets(
        boxes_xyxy=boxes,
        labels=np.array([0, 0, 2, 0]),
        masks=masks,
        crowd=np.array([False, False, False, True]),
    )
    return Sample(f"a/{number}", np.zeros((100, 100, 3), np.uint8), "", (), image_id="a", dense=dense)


@pytest.mark.parametrize(
    ("label", "expected"),
    [("Ring", 0), ("small red ring", 0), ("the traffic light", 1), ("red light", 2), ("rings", 3), ("", 3)],
)
def test_a_name_means_the_longest_class_that_it_ends_with(label, expected):
    assert class_of(label, CLASSES) == expected


def test_boxes_of_one_class_that_repeat_count_once():
    text = "a red ring 000 000 400 400 is left of the ring 600 000 990 400 . the small ring 000 000 400 400 . a dog 1 ."
    found = answer_boxes(scene(), BoxedCaption().parse(text, (100, 100)), CLASSES)
    assert found["labels"] == [0, 0]
    assert found["num_repeated"] == 1
    assert found["num_unknown_names"] == 0
    other = JointTemplate().parse(
        "Detections: cat [0, 0, 9, 9]; ring [1, 2, 3, 4]; ring [1, 2, 3, 4]", (100, 100)
    )
    found = answer_boxes(scene(), other, CLASSES)
    assert (found["labels"], found["num_repeated"], found["num_unknown_names"]) == ([3, 0], 1, 1)
    assert "masks" not in found["target"]


def record(number: int, **changes) -> dict:
    own = dict(
        record_id=f"joint/{number}", image_id=str(number), missing=[], truncated=False, num_parsed=1, num_bad=0,
        num_repaired=0, num_unread_masks=0, boxes=None, masks=None, score=None, base_boxes=None,
    )  # fmt: skip
    return {**own, **changes}


def test_figures_of_a_case_worked_out_by_hand():
    sample = scene()
    parse = JointTemplate().parse
    whole = parse(
        "Detections: ring [0, 0, 400, 400]; light [0, 600, 400, 999]; ring [0, 500, 9, 509]", (100, 100)
    )
    base = parse("Detections: ring [0, 0, 400, 400]", (100, 100))
    masks = np.zeros((2, 100, 100), dtype=bool)
    masks[0, :40, :40] = True  # the first ring, exactly
    masks[1, 60:80, :40] = True  # half of the light, called a cat
    first = record(
        1,
        boxes=answer_boxes(sample, whole, CLASSES),
        base_boxes=answer_boxes(sample, base, CLASSES),
        masks=answer_masks(sample, masks, ["red ring", "cat"], CLASSES),
        score=1.0,
        num_bad=1,
    )
    second = record(
        2,
        boxes=answer_boxes(scene(2), parse("", (9, 9)), CLASSES),
        missing=["detections"],
        truncated=True,
        score=0.0,
    )
    second["masks"] = answer_masks(sample, masks[:0], [], CLASSES)
    figures = joint_figures([second, first, first], num_resamples=50)
    assert figures["num_records"] == 2
    # Two of three boxes match two of three objects in the first; nothing of three in the second.
    assert figures["F1@0.5"] == pytest.approx(2 * 2 / (3 + 6))
    assert figures["precision@0.5"] == pytest.approx(2 / 3)
    assert figures["recall@0.5"] == pytest.approx(2 / 6)
    assert figures["base_F1@0.5"] == pytest.approx(2 * 1 / (1 + 3))
    # First: rings 1600 of 3200, light 0, cat 0; second: rings 0, light 0.
    assert figures["gIoU"] == pytest.approx(0.5 / 5)
    assert figures["mask_F1@0.5"] == pytest.approx(2 * 1 / (2 + 6))
    assert figures["answer_accuracy"] == 0.5
    assert (figures["num_unparsable"], figures["num_truncated"], figures["num_bad"]) == (1, 1, 1)
    assert figures["parse_rate"] == pytest.approx(2 / 3)
    for name in ("F1@0.5", "base_F1@0.5", "gIoU", "mask_F1@0.5", "answer_accuracy"):
        assert figures[f"{name}_low"] <= figures[name] <= figures[f"{name}_high"]
    assert figures["F1@0.5_low"] == 0.0


def test_records_of_one_image_are_drawn_together():
    """Two records of opposite worth about one image: no resample differs, so the interval is a point."""
    pair = [record(1, score=1.0), record(2, score=0.0, image_id="1")]
    figures = joint_figures(pair, num_resamples=50)
    assert figures["answer_accuracy_low"] == figures["answer_accuracy_high"] == 0.5
    apart = joint_figures([record(1, score=1.0), record(2, score=0.0)], num_resamples=50)
    assert apart["answer_accuracy_low"] == 0.0
    assert "gIoU" not in apart
    assert "F1@0.5" not in apart


def test_masks_of_a_label_map():
    sample = scene()
    semantic = np.full((100, 100), 255, np.uint8)
    semantic[:50], semantic[50:90] = 0, 2
    maps = Sample("a/1", sample.image, "", (), dense=DenseTargets(semantic=semantic))
    found = answer_masks(maps, (semantic == 2)[None], ["light"], CLASSES)
    assert found["target_labels"] == [0, 2]
    assert found["united"] == [[0, 5000], [4000, 4000]]
