"""Which boxes of a detector become labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.ops import box_convert, nms

from flmm_detseg.labelling.models import Detections
from flmm_detseg.labelling.thresholds import Thresholds

# Narrower boxes hold no pixel.
_MIN_SIDE = 1.0


def select_boxes(
    found: Detections,
    image_size: tuple[int, int],
    thresholds: Thresholds,
    annotated: Sequence[Mapping[str, Any]] = (),
    category_ids: Sequence[int] = (),
) -> tuple[Detections, Counter[str]]:
    """Cuts boxes to the image and keeps those that are fit to learn from.

    Args:
        found: What the detector gave.
        image_size: ``(H, W)``.
        thresholds: The rules.
        annotated: COCO annotations of the image. A crowd takes away the boxes of its class that lie in it by more than
            ``ground_truth_iou`` of their own area (COCO's overlap with a crowd).
        category_ids: Category id by label, for the comparison with ``annotated``.

    Returns:
        The boxes that are left, best first, and the number dropped by reason.
    """
    dropped: Counter[str] = Counter()

    def keep(boxes: Detections, fit: Tensor, reason: str) -> Detections:
        dropped[reason] += int((~fit).sum())
        return boxes.take(fit)

    height, width = image_size
    boxes = keep(found, found.labels >= 0, "no class")
    # Zero is no weight to learn with, and the file holds four decimals.
    boxes = keep(boxes, (boxes.scores >= thresholds.min_score) & (boxes.scores >= 1e-4), "low score")
    limits = boxes.boxes_xyxy.new_tensor([width, height, width, height])
    boxes = replace(boxes, boxes_xyxy=boxes.boxes_xyxy.clamp(min=0).minimum(limits))
    sides = boxes.boxes_xyxy[:, 2:] - boxes.boxes_xyxy[:, :2]
    boxes = keep(boxes, (sides >= _MIN_SIDE).all(-1), "degenerate box")
    best = nms(boxes.boxes_xyxy, boxes.scores, thresholds.nms)
    dropped["duplicate"] += len(boxes) - len(best)
    boxes = boxes.take(best)
    boxes = keep(boxes, ~_annotated(boxes, annotated, category_ids, thresholds), "in the ground truth")
    dropped["over max_boxes"] += max(0, len(boxes) - thresholds.max_boxes)
    return boxes.take(torch.arange(min(len(boxes), thresholds.max_boxes))), +dropped


def _annotated(
    boxes: Detections,
    annotated: Sequence[Mapping[str, Any]],
    category_ids: Sequence[int],
    thresholds: Thresholds,
) -> Tensor:
    if not len(boxes) or not annotated:
        return torch.zeros(len(boxes), dtype=torch.bool)
    overlap = coco_mask.iou(
        box_convert(boxes.boxes_xyxy, "xyxy", "xywh").double().numpy(),
        np.array([entry["bbox"] for entry in annotated], dtype=np.float64),
        [int(bool(entry.get("iscrowd", 0))) for entry in annotated],
    )
    true = np.array([entry["category_id"] for entry in annotated])
    ours = np.array([category_ids[label] for label in boxes.labels.tolist()])
    same = ours[:, None] == true[None, :]
    return torch.from_numpy(((overlap > thresholds.ground_truth_iou) & same).any(-1))
