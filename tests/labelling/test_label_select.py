from __future__ import annotations

import pytest
import torch

from flmm_detseg.errors import ConfigError
from flmm_detseg.labelling.models import Detections
from flmm_detseg.labelling.select import select_boxes
from flmm_detseg.labelling.thresholds import Thresholds

SIZE = (50, 100)  # (H, W)
IDS = [7, 4]


def detections(*rows):
    """Rows of x0, y0, x1, y1, score, label."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].long())


def select(found, annotated=(), **thresholds):
    boxes, dropped = select_boxes(found, SIZE, Thresholds(**thresholds), annotated, IDS)
    return [round(score, 2) for score in boxes.scores.tolist()], dict(dropped)


def truth(category_id, *bbox, iscrowd=0):
    return {"category_id": category_id, "bbox": list(bbox), "iscrowd": iscrowd}


def test_overlapping_boxes_leave_the_best_whatever_their_class():
    found = detections(
        (0, 0, 10, 10, 0.6, 0),
        (0, 0, 9, 10, 0.7, 1),  # IoU 0.9 with the first
        (2, 0, 10, 10, 0.8, 0),  # IoU 0.8 with the first, 0.7 with the second
        (50, 0, 60, 10, 0.9, 0),
    )
    assert select(found) == ([0.9, 0.8, 0.7], {"duplicate": 1})
    assert select(found, nms=0.95) == ([0.9, 0.8, 0.7, 0.6], {})
    assert select(found, nms=0.69) == ([0.9, 0.8], {"duplicate": 2})


def test_the_best_are_kept():
    found = detections(*((10 * n, 0, 10 * n + 8, 8, 0.4 + 0.1 * n, 0) for n in range(5)))
    assert select(found) == ([0.8, 0.7, 0.6, 0.5], {"low score": 1})
    assert select(found, min_score=0.65, max_boxes=1) == ([0.8], {"low score": 3, "over max_boxes": 1})


def test_boxes_are_cut_to_the_image():
    found = detections(
        (-5, -5, 20, 20, 0.9, 0), (90, 40, 130, 70, 0.8, 0), (100, 0, 120, 9, 0.7, 0), (3, 3, 9, 3.5, 0.6, 0)
    )
    boxes, dropped = select_boxes(found, SIZE, Thresholds())
    assert boxes.boxes_xyxy.tolist() == [[0, 0, 20, 20], [90, 40, 100, 50]]
    assert dropped == {"degenerate box": 2}


def test_boxes_without_class_or_weight_are_dropped():
    found = detections((0, 0, 9, 9, 0.9, -1), (0, 0, 9, 9, 0.00004, 0), (20, 0, 29, 9, 0.2, 1))
    assert select(found, min_score=0.0) == ([0.2], {"no class": 1, "low score": 1})


def test_objects_of_the_ground_truth_are_not_labelled_again():
    found = detections((0, 0, 10, 10, 0.9, 0), (40, 0, 50, 10, 0.8, 1))
    assert select(found, [truth(7, 0, 0, 10, 6)]) == ([0.8], {"in the ground truth": 1})
    assert select(found, [truth(7, 0, 0, 10, 5)]) == ([0.9, 0.8], {})  # IoU 0.5 is not over 0.5
    assert select(found, [truth(4, 0, 0, 10, 10)]) == ([0.9, 0.8], {})  # another class
    assert select(found, [truth(4, 0, 0, 9, 9), truth(4, 39, 0, 11, 10)]) == (
        [0.9],
        {"in the ground truth": 1},
    )


def test_a_crowd_takes_the_boxes_that_lie_in_it():
    found = detections((0, 0, 10, 10, 0.9, 0), (94, 0, 100, 10, 0.8, 0))
    assert select(found, [truth(7, 0, 0, 96, 50)]) == ([0.9, 0.8], {})
    assert select(found, [truth(7, 0, 0, 96, 50, iscrowd=1)]) == ([0.8], {"in the ground truth": 1})


def test_the_cap_counts_new_boxes_only():
    found = detections((0, 0, 10, 10, 0.9, 0), (40, 0, 50, 10, 0.8, 0))
    assert select(found, [truth(7, 0, 0, 10, 10)], max_boxes=1) == ([0.8], {"in the ground truth": 1})


def test_no_box():
    assert select(detections(), [truth(7, 0, 0, 10, 10)]) == ([], {})


@pytest.mark.parametrize(("name", "value"), [("nms", 1.5), ("box", -0.1), ("max_boxes", 0)])
def test_thresholds_out_of_range(name, value):
    with pytest.raises(ConfigError, match=f"`{name}` is {value}"):
        Thresholds(**{name: value})
