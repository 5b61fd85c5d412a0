"""Canonical coordinates of text: integers 0..999 per axis, whatever the image size, padding or processor.

Rounding: ``q = floor(value / size * 999 + 0.5)`` (half up), clamped to 0..999; back: ``value = q / 999 * size``. Both
ends of the image are exact (0 and ``size``), a value inside the image moves by at most ``size / 1998``, and
``quantise(dequantise(q)) == q`` for every q. Families that were pre-trained with ``q = floor(value / size * 1000)``
differ by at most one step.

Frame: continuous pixel edges of the original image: pixel i covers ``[i, i + 1)``, so boxes are half-open as everywhere
in this package.
"""

from __future__ import annotations

import numpy as np

from flmm_detseg.errors import DataError

MAX_COORDINATE = 999


def _scale(image_size: tuple[int, int], num_values: int) -> np.ndarray:
    height, width = image_size
    if height <= 0 or width <= 0:
        raise DataError(f"image_size must be a positive (H, W), got {tuple(image_size)}")
    return np.tile(np.array([width, height], dtype=np.float64), num_values // 2)


def _quantise(values: np.ndarray, image_size: tuple[int, int], num_values: int) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim == 0 or values.shape[-1] != num_values:
        raise DataError(f"coordinates must be [..., {num_values}], got shape {values.shape}")
    if not np.isfinite(values).all():
        raise DataError(
            f"coordinates hold NaN or infinity: {values[~np.isfinite(values).all(-1)][:1].tolist()}"
        )
    bins = np.floor(values / _scale(image_size, num_values) * MAX_COORDINATE + 0.5)
    return np.clip(bins, 0, MAX_COORDINATE).astype(np.int64)


def quantise_points(points_xy: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Pixels to canonical integers; points outside the image move to its edge.

    Args:
        points_xy: ``[..., 2]``, any number type, pixels of the original image.
        image_size: ``(H, W)`` of the original image.

    Returns:
        int64 ``[..., 2]`` in 0..999.

    Raises:
        DataError: A value is not finite, the last axis is not 2, or the image size is not positive.
    """
    return _quantise(points_xy, image_size, 2)


def quantise_boxes(boxes_xyxy: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Pixels to canonical integers, as :func:`quantise_points`; swapped corners are put in order.

    Args:
        boxes_xyxy: ``[..., 4]``, half-open, pixels of the original image.
        image_size: ``(H, W)`` of the original image.

    Returns:
        int64 ``[..., 4]``, xyxy in 0..999; a box thinner than a step may have equal edges.

    Raises:
        DataError: As :func:`quantise_points`.
    """
    bins = _quantise(boxes_xyxy, image_size, 4)
    low, high = bins[..., :2], bins[..., 2:]
    return np.concatenate([np.minimum(low, high), np.maximum(low, high)], axis=-1)


def dequantise_points(points_q: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Canonical integers ``[..., 2]`` to pixels of an image of ``image_size`` ``(H, W)``; float64 ``[..., 2]``."""
    points_q = np.asarray(points_q, dtype=np.float64)
    return points_q / MAX_COORDINATE * _scale(image_size, 2)


def dequantise_boxes(boxes_q: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Canonical integers ``[..., 4]`` to half-open xyxy pixels of an image of ``image_size``; float64 ``[..., 4]``."""
    boxes_q = np.asarray(boxes_q, dtype=np.float64)
    return boxes_q / MAX_COORDINATE * _scale(image_size, 4)
