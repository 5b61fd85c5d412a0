"""Masks from COCO polygons and RLE, PNG files and panoptic maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask


def decode_segmentation(segmentation: Any, image_size: tuple[int, int]) -> np.ndarray:
    """Decodes a COCO segmentation: a list of polygons (their union), or an RLE.

    Args:
        segmentation: ``[[x0, y0, x1, y1, ...], ...]`` in pixels, or ``{"size": [H, W], "counts": str |
            bytes | list}``.
        image_size: ``(H, W)`` of the image.

    Returns:
        bool ``[H, W]``.

    Raises:
        ValueError: Malformed, or of another size; says how.
    """
    height, width = image_size
    if isinstance(segmentation, Mapping):
        return _decode_rle(segmentation, image_size)
    check_polygons(segmentation)
    parts = coco_mask.frPyObjects([list(map(float, part)) for part in segmentation], height, width)
    return coco_mask.decode(coco_mask.merge(parts)).astype(bool)


def check_polygons(polygons: Any) -> None:
    """Checks polygons without drawing them.

    Raises:
        ValueError: Not a non-empty list of flat lists of at least three finite points.
    """
    if not isinstance(polygons, Sequence) or isinstance(polygons, str) or len(polygons) == 0:
        raise ValueError("no polygon")
    for part in polygons:
        if not isinstance(part, Sequence) or len(part) < 6 or len(part) % 2:
            raise ValueError("a polygon must be a flat list x0, y0, x1, y1, ... of at least 3 points")
        if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in part):
            raise ValueError("a polygon holds something that is not a number")


def check_segmentation(segmentation: Any, image_size: tuple[int, int]) -> None:
    """Checks the form of a segmentation without decoding it; see :func:`decode_segmentation`."""
    if isinstance(segmentation, Mapping):
        _check_rle(segmentation, image_size)
    else:
        check_polygons(segmentation)


def _check_rle(rle: Mapping[str, Any], image_size: tuple[int, int]) -> None:
    if "size" not in rle or "counts" not in rle:
        raise ValueError("an RLE needs the keys `size` and `counts`")
    if list(rle["size"]) != list(image_size):
        raise ValueError(f"mask size {list(rle['size'])} is not the image size {list(image_size)} (H, W)")
    if not isinstance(rle["counts"], (str, bytes, list)):
        raise ValueError(f"RLE counts must be a string or a list, got {type(rle['counts']).__name__}")


def _read_counts(compressed: str | bytes) -> list[int]:
    """Decompresses RLE counts: pycocotools takes any text and leaves pixels that it does not cover undefined.

    Source: COCO's compressed RLE: 5 bits per character, offset 48, differences to the count before last.
    """
    text = compressed.encode("ascii") if isinstance(compressed, str) else compressed
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = character - 48
        if not 0 <= bits < 64:
            raise ValueError(f"RLE counts hold the character {chr(character)!r}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("RLE counts are cut off")
    return counts


def _decode_rle(rle: Mapping[str, Any], image_size: tuple[int, int]) -> np.ndarray:
    _check_rle(rle, image_size)
    counts = rle["counts"] if isinstance(rle["counts"], list) else _read_counts(rle["counts"])
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        raise ValueError("RLE counts must be non-negative integers")
    if sum(counts) != image_size[0] * image_size[1]:
        raise ValueError(f"RLE counts sum to {sum(counts)}, not {image_size[0] * image_size[1]} (H * W)")
    encoded = coco_mask.frPyObjects({"size": list(image_size), "counts": counts}, *image_size)
    return coco_mask.decode(encoded).astype(bool)


def read_mask_png(path: str | Path) -> np.ndarray:
    """Reads a mask picture: non-zero is foreground (alpha ignored).

    Returns:
        bool ``[H, W]``.

    Raises:
        OSError: Missing or broken.
    """
    with Image.open(path) as image:
        if image.mode == "P":  # palette index 0 is background whatever its colour
            return np.asarray(image) > 0
        array = np.asarray(image.convert("RGB") if image.mode == "RGBA" else image)
    return (array > 0).any(-1) if array.ndim == 3 else array > 0


def read_panoptic_ids(path: str | Path) -> np.ndarray:
    """Reads a COCO panoptic PNG.

    Returns:
        int32 ``[H, W]``: segment id ``R + 256 G + 256^2 B``; 0 is unlabelled.

    Raises:
        OSError: Missing or broken.
    """
    with Image.open(path) as image:
        rgb = np.asarray(image.convert("RGB")).astype(np.int32)
    return rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
