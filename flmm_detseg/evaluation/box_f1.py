"""Precision, recall and F1 of boxes without scores (read from text), by one-to-one matching."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from flmm_detseg.evaluation.box_records import ordered_images

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))


def text_box_figures(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Precision, recall and F1 of boxes that have no order (or whose scores are to be left aside).

    Per image, class and IoU threshold, predictions and targets are matched one to one so that as many as possible
    are matched (Hungarian algorithm; among equal matchings one that uses predictions outside crowds). Unmatched
    predictions with at least that share of their area inside a crowd of their class do not count. Counts are
    summed over images and classes before dividing (micro average).

    Args:
        records: Of :func:`~flmm_detseg.evaluation.box_records.box_record`, in any order.

    Returns:
        ``num_images``, ``num_boxes``, and ``precision``, ``recall``, ``F1``, each ``@0.5`` and ``@mean`` (mean over
        IoU 0.50, 0.55 ... 0.95). No predictions and no targets at all: only the counts.

    Source: F1@IoU and its mean as reported for box-writing LMMs, Rex-Omni (arXiv 2510.12798).
    """
    records = ordered_images(records)
    counts = np.zeros((len(IOU_THRESHOLDS), 3), dtype=np.int64)  # matched, predicted, targets
    for record in records:
        counts += match_counts(record)
    figures: dict[str, float] = {
        "num_images": len(records),
        "num_boxes": sum(len(record["boxes_xyxy"]) for record in records),
    }
    matched, predicted, targets = counts.T
    if not (predicted + targets).any():
        return figures
    values = {
        "precision": matched / np.maximum(predicted, 1),
        "recall": matched / np.maximum(targets, 1),
        "F1": 2 * matched / np.maximum(predicted + targets, 1),
    }
    for name, by_threshold in values.items():
        figures[f"{name}@0.5"] = float(by_threshold[0])
        figures[f"{name}@mean"] = float(by_threshold.mean())
    return figures


def match_counts(record: Mapping[str, Any]) -> np.ndarray:
    """What one image adds to the sums that :func:`text_box_figures` divides.

    Args:
        record: Of :func:`~flmm_detseg.evaluation.box_records.box_record`.

    Returns:
        int64 ``[thresholds, 3]``: matched, counted predictions, targets, over all classes.
    """
    labels = sorted({*record["labels"], *record["target"]["labels"]})
    counts = np.zeros((len(IOU_THRESHOLDS), 3), dtype=np.int64)
    for label in labels:
        counts += _match_class(record, label)
    return counts


def _match_class(record: Mapping[str, Any], label: int) -> np.ndarray:
    """Matched, counted predictions and targets of one class, ``[thresholds, 3]``."""
    target = record["target"]
    boxes = _boxes([b for b, k in zip(record["boxes_xyxy"], record["labels"], strict=True) if k == label])
    named = list(zip(target["boxes_xyxy"], target["labels"], target["crowd"], strict=True))
    objects = _boxes([box for box, k, crowd in named if k == label and not crowd])
    crowds = _boxes([box for box, k, crowd in named if k == label and crowd])
    overlaps, areas = _intersections(boxes, objects), _areas(boxes)
    unions = areas[:, None] + _areas(objects) - overlaps
    ious = np.divide(overlaps, unions, out=np.zeros_like(overlaps), where=unions > 0)
    inside = _intersections(boxes, crowds).max(axis=1, initial=0.0) / np.maximum(areas, 1e-9)
    counts = np.zeros((len(IOU_THRESHOLDS), 3), dtype=np.int64)
    for number, threshold in enumerate(IOU_THRESHOLDS):
        hits, ignorable = ious >= threshold, inside >= threshold
        gains = hits * (len(boxes) + 1 + ~ignorable[:, None])
        rows, columns = linear_sum_assignment(gains, maximize=True)
        rows = rows[hits[rows, columns]]
        ignored = ignorable.copy()
        ignored[rows] = False
        counts[number] = len(rows), len(boxes) - ignored.sum(), len(objects)
    return counts


def _boxes(boxes: list[list[float]]) -> np.ndarray:
    return np.asarray(boxes, dtype=np.float64).reshape(-1, 4)


def _areas(boxes_xyxy: np.ndarray) -> np.ndarray:
    return (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).clip(min=0).prod(axis=1)


def _intersections(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Areas shared by every pair, ``[len(first), len(second)]``."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    return (high - low).clip(min=0).prod(axis=2)
