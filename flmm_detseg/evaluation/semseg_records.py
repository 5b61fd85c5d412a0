"""Pixel counts of a semantic segmentation, per image and class, as integers: sums do not depend on order."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import torch

from flmm_detseg.errors import ConfigError, DataError, RunError
from flmm_detseg.structures import Sample

IGNORE = 255


def semseg_record(
    sample: Sample,
    prediction: torch.Tensor | np.ndarray,
    num_classes: int,
    *,
    tolerance: float = 0.0075,
    band: float = 0.02,
) -> dict[str, Any]:
    """Compares a predicted label map with the target of its sample. Pixels with target 255 do not count.

    Args:
        sample: With ``dense.semantic`` ``[H, W]``.
        prediction: Integer ``[H, W]``, labels ``0 .. num_classes - 1``, original image size.
        num_classes: Number of classes.
        tolerance: Of the boundary F1: how far a contour may be off; below 1 a share of the image diagonal, else pixels.
        band: Of the boundary IoU: width of the band inside each mask, as a share of the image diagonal.

    Returns:
        ``record_id``; ``confusion``: ``[target, predicted, pixels]`` of every pair that occurs; ``contour``: per class
        in target or prediction ``[class, matched predicted, predicted, matched target, target]`` contour pixels;
        ``band``: ``[class, intersection, union]`` of the bands.

    Raises:
        ConfigError: Tolerance or band width cannot be used.
        DataError: The sample has no target, or one with a label out of range.
        RunError: The prediction has another shape or a label out of range.
    """
    if not tolerance > 0 or not 0 < band < 1:
        raise ConfigError(
            f"`tolerance` is {tolerance} and `band` {band}; both must be positive, the band below 1"
        )
    target, labels = _checked_maps(sample, prediction, num_classes)
    valid = target != IGNORE
    pairs = target[valid].astype(np.int64) * num_classes + labels[valid].astype(np.int64)
    pairs, pixels = np.unique(pairs, return_counts=True)
    diagonal = math.hypot(*target.shape)
    radius = tolerance * diagonal if tolerance < 1 else tolerance
    width = max(1, round(band * diagonal))
    contours, bands = [], []
    for label in sorted(
        {int(pair) // num_classes for pair in pairs} | {int(pair) % num_classes for pair in pairs}
    ):
        truth, found = valid & (target == label), valid & (labels == label)
        contours.append([label, *contour_counts(found, truth, valid, radius)])
        bands.append([label, *band_counts(found, truth, valid, width)])
    confusion = [
        [int(pair) // num_classes, int(pair) % num_classes, int(count)]
        for pair, count in zip(pairs, pixels, strict=True)
    ]
    return {"record_id": sample.record_id, "confusion": confusion, "contour": contours, "band": bands}


def _checked_maps(
    sample: Sample, prediction: torch.Tensor | np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Target and predicted labels, of one shape and in range."""
    target = None if sample.dense is None else sample.dense.semantic
    if target is None:
        raise DataError(f"{sample.record_id}: it has no label map to evaluate against (`dense.semantic`).")
    labels = (
        prediction.detach().cpu().numpy() if isinstance(prediction, torch.Tensor) else np.asarray(prediction)
    )
    if labels.shape != target.shape:
        raise RunError(
            f"{sample.record_id}: the predicted map has shape {labels.shape}, expected {target.shape}."
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        raise RunError(
            f"{sample.record_id}: predicted labels {labels.min()} .. {labels.max()} of {num_classes} classes."
        )
    known = target[target != IGNORE]
    if known.size and known.max() >= num_classes:
        raise DataError(f"{sample.record_id}: label {known.max()} in the target, of {num_classes} classes.")
    return target, labels


def contour_counts(
    found: np.ndarray, truth: np.ndarray, valid: np.ndarray, radius: float
) -> tuple[int, int, int, int]:
    """Contour pixels of two masks, and how many of each are at most ``radius`` from one of the other.

    A contour pixel belongs to the mask and has one of its four neighbours in another class. The image frame and the
    edge of unknown areas are no contours.

    Args:
        found: bool ``[H, W]``, predicted mask, within ``valid``.
        truth: bool ``[H, W]``, target mask, within ``valid``.
        valid: bool ``[H, W]``, pixels that count.
        radius: Pixels, Euclidean, between pixel centres.

    Returns:
        Matched predicted, predicted, matched target, target.

    Source: boundary F1 of Csurka et al., What is a good evaluation measure for semantic segmentation?, BMVC 2013.
    """
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    edges = [mask & _dilate(valid & ~mask, cross) for mask in (found, truth)]
    reach = math.floor(radius)
    offsets = np.arange(-reach, reach + 1)
    disk = (offsets[:, None] ** 2 + offsets[None, :] ** 2 <= radius**2).astype(np.uint8)
    near = [_dilate(edge, disk) for edge in edges]
    return (
        int((edges[0] & near[1]).sum()),
        int(edges[0].sum()),
        int((edges[1] & near[0]).sum()),
        int(edges[1].sum()),
    )


def band_counts(found: np.ndarray, truth: np.ndarray, valid: np.ndarray, width: int) -> tuple[int, int]:
    """Intersection and union of the inner bands of two masks, in pixels.

    The band holds the pixels of a mask at most ``width`` (in rows and in columns) from a pixel of another class or
    from outside of the image; the edge of unknown areas makes no band.

    Args:
        found: bool ``[H, W]``, predicted mask, within ``valid``.
        truth: bool ``[H, W]``, target mask, within ``valid``.
        valid: bool ``[H, W]``, pixels that count.
        width: Pixels, at least 1.

    Returns:
        Numbers of pixels; both 0 where neither mask has a band.

    Source: Cheng et al., Boundary IoU, CVPR 2021 (arXiv 2103.16562), section 4; there the image frame counts too.
    """
    square = np.ones((2 * width + 1, 2 * width + 1), dtype=np.uint8)
    bands = [
        mask & _dilate(np.pad(valid & ~mask, 1, constant_values=True), square)[1:-1, 1:-1]
        for mask in (found, truth)
    ]
    return int((bands[0] & bands[1]).sum()), int((bands[0] | bands[1]).sum())


def _dilate(mask: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    grown = cv2.dilate(mask.astype(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return grown.astype(bool)
