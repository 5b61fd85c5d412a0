"""Masks from COCO polygons and RLE, PNG files and panoptic maps."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from flmm_detseg.datasets.images import read_labels
from flmm_detseg.datasets.policy import record_error
from flmm_detseg.utils.values import FieldError, is_number, picture_size, shown

# pycocotools walks along the outline in steps of a fifth of a pixel BEFORE it cuts it to the image: 140 bytes a pixel
# of outline, and coordinates beyond 4e8 overflow its integers. A million pixels are far more than an object has.
_LONGEST_OUTLINE = 2_000_000
_FARTHEST = 1_000_000
_MASK_MODES = frozenset(("1", "L", "LA", "P", "PA", "I", "I;16", "I;16B", "F", "RGB", "RGBA"))
_PANOPTIC_MODES = frozenset(("RGB", "RGBA", "P"))


def decode_segmentation(segmentation: Any, image_size: tuple[int, int]) -> np.ndarray:
    """Decodes a COCO segmentation: a list of polygons (their union), or an RLE.

    Args:
        segmentation: ``[[x0, y0, x1, y1, ...], ...]`` in pixels, or ``{"size": [H, W], "counts": str |
            bytes | list}``.
        image_size: ``(H, W)`` of the image.

    Returns:
        bool ``[H, W]``.

    Raises:
        FieldError: Malformed, of another size, or a polygon farther outside or longer than native code survives
            (:func:`check_polygons`); says how.
    """
    height, width = image_size
    if isinstance(segmentation, Mapping):
        return _decode_rle(segmentation, image_size)
    check_polygons(segmentation)
    parts = coco_mask.frPyObjects([list(map(float, part)) for part in segmentation], height, width)
    return coco_mask.decode(coco_mask.merge(parts)).astype(bool)


def check_polygons(polygons: Any) -> None:
    """Checks polygons without drawing them.

    A polygon may leave the image, and is cut there. One that leaves it by a million pixels, or whose outlines are two
    million pixels long together, is a mistake.

    Args:
        polygons: As decoded from JSON.

    Raises:
        FieldError: Not a non-empty list of flat lists of at least three finite points, or as above.
    """
    if not isinstance(polygons, Sequence) or isinstance(polygons, str | bytes) or len(polygons) == 0:
        raise FieldError("no polygon", "bad mask")
    longest = 0.0
    for part in polygons:
        if not isinstance(part, Sequence) or isinstance(part, str | bytes) or len(part) < 6 or len(part) % 2:
            raise FieldError(
                "a polygon must be a flat list x0, y0, x1, y1, ... of at least 3 points", "bad mask"
            )
        if not set(map(type, part)) <= {int, float} and not all(map(is_number, part)):
            wrong = next(value for value in part if not is_number(value))
            raise FieldError(f"a polygon holds {shown(wrong)}, which is not a number", "bad mask")
        try:
            finite = math.isfinite(sum(part))  # the result of nan and infinities
        except OverflowError:  # an integer of hundreds of digits
            finite = False
        if not finite:
            message = "a polygon holds something that is not a number, or one without end"
            raise FieldError(message, "bad mask")
        low, high = float(min(part)), float(max(part))
        if max(-low, high) > _FARTHEST:
            message = f"a polygon has the coordinate {max(-low, high):.3g}; {_FARTHEST} pixels are the limit"
            raise FieldError(message, "bad mask")
        longest += len(part) // 2 * (high - low)
    if longest > _LONGEST_OUTLINE and (length := sum(map(_outline, polygons))) > _LONGEST_OUTLINE:
        message = (
            f"its outline is {length:.3g} pixels long, over {_LONGEST_OUTLINE}; use an RLE or a PNG mask"
        )
        raise FieldError(message, "bad mask")


def _outline(polygon: Sequence[float]) -> float:
    """Steps that pycocotools takes along a polygon, in pixels."""
    points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
    return float(np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1).sum())


def check_segmentation(segmentation: Any, image_size: tuple[int, int]) -> None:
    """Checks the form of a segmentation without decoding it; see :func:`decode_segmentation`."""
    if isinstance(segmentation, Mapping):
        _check_rle(segmentation, image_size)
    else:
        check_polygons(segmentation)


def decode_parts(segmentation: Any, image_size: tuple[int, int]) -> np.ndarray:
    """As :func:`decode_segmentation`, also of a list of RLEs (their union), as refCLEF and GranD-f have them."""
    parts = _rle_parts(segmentation)
    masks = [decode_segmentation(part, image_size) for part in parts or [segmentation]]
    return np.logical_or.reduce(masks)


def check_parts(segmentation: Any, image_size: tuple[int, int]) -> None:
    """Checks the form of what :func:`decode_parts` decodes."""
    for part in _rle_parts(segmentation) or [segmentation]:
        check_segmentation(part, image_size)


def _rle_parts(segmentation: Any) -> list[Any] | None:
    """The parts of a list of RLEs; None: it is none."""
    is_list = isinstance(segmentation, list) and bool(segmentation)
    return segmentation if is_list and all(isinstance(part, Mapping) for part in segmentation) else None


def _check_rle(rle: Mapping[str, Any], image_size: tuple[int, int]) -> None:
    if "size" not in rle or "counts" not in rle:
        raise FieldError("an RLE needs the keys `size` and `counts`", "bad mask")
    size = rle["size"]
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(map(_is_integer, size)):
        raise FieldError(f"RLE `size` is {shown(size)}, not [H, W]", "bad mask")
    if list(size) != list(image_size):
        message = f"mask size {shown(list(size))} is not the image size {list(image_size)} (H, W)"
        raise FieldError(message, "bad mask")
    if not isinstance(rle["counts"], (str, bytes, list)):
        raise FieldError(
            f"RLE counts must be a string or a list, got {type(rle['counts']).__name__}", "bad mask"
        )


def _is_integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _read_counts(compressed: str | bytes, most: int) -> list[int]:
    """Decompresses RLE counts: pycocotools accepts any text and leaves pixels that it does not cover undefined.

    Args:
        compressed: The text.
        most: Pixels of the image: no count is larger.

    Source: COCO's compressed RLE: 5 bits per character, offset 48, differences to the count before last.
    """
    text = compressed.encode("utf-8", "replace") if isinstance(compressed, str) else compressed
    longest = most.bit_length() + 10
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = character - 48
        if not 0 <= bits < 64:
            raise FieldError(f"RLE counts hold the character {chr(character)!r}", "bad mask")
        value |= (bits & 31) << shift
        shift += 5
        if shift > longest:
            raise FieldError("RLE counts hold a number larger than the image", "bad mask")
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise FieldError("RLE counts are cut off", "bad mask")
    return counts


def _decode_rle(rle: Mapping[str, Any], image_size: tuple[int, int]) -> np.ndarray:
    _check_rle(rle, image_size)
    picture_size(*image_size, "mask")
    area = image_size[0] * image_size[1]
    counts = rle["counts"] if isinstance(rle["counts"], list) else _read_counts(rle["counts"], area)
    if not all(_is_integer(count) and 0 <= count <= area for count in counts):
        raise FieldError("RLE counts must be integers from 0 to the number of pixels", "bad mask")
    if sum(counts) != area:
        raise FieldError(f"RLE counts sum to {sum(counts)}, not {area} (H * W)", "bad mask")
    encoded = coco_mask.frPyObjects({"size": list(image_size), "counts": counts}, *image_size)
    return coco_mask.decode(encoded).astype(bool)


def read_mask_png(path: str | Path, size: tuple[int, int] | None = None, record: str = "") -> np.ndarray:
    """Reads a mask picture: pixels that are not 0 are the object (of a palette picture, those that are not index 0).

    An alpha plane is not part of that, with one exception: where the colour is the same everywhere, the shape can only
    be in alpha, and pixels that are not transparent are the object. Where colour and alpha give two different shapes,
    the picture is refused.

    Args:
        path: The file, in a format that keeps pixel values (not JPEG).
        size: ``(H, W)`` it must have, checked before it is decoded; None: any.
        record: Record that asks for it, for the error.

    Returns:
        bool ``[H, W]``.

    Raises:
        RecordError: Missing, broken, too large, lossy, of another size or a mode that is not known
            (:func:`~flmm_detseg.datasets.images.read_labels`), or two different shapes.
    """

    def problem(message: str) -> Exception:
        remedy = "Save it as an 8-bit grey PNG without alpha: 0 outside of the object, 255 inside."
        return record_error(str(path), record, message, remedy, "bad mask")

    _, values, alpha = read_labels(path, record, "mask", _MASK_MODES, size)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise problem("mask holds values that are no numbers")
    mask = (values != 0).any(-1) if values.ndim == 3 else values != 0
    if alpha is None or alpha.min() == alpha.max():
        return mask
    visible = alpha > 0
    if (values == values[0, 0]).all():
        return visible
    if np.array_equal(mask, visible) or visible.all():
        return mask
    raise problem("mask has one shape in its colours and another one in its alpha plane")


def read_panoptic_ids(path: str | Path, size: tuple[int, int] | None = None, record: str = "") -> np.ndarray:
    """Reads a COCO panoptic PNG.

    Args:
        path: The file.
        size: ``(H, W)`` it must have, checked before it is decoded; None: any.
        record: Record that asks for it, for the error.

    Returns:
        int32 ``[H, W]``: segment id ``R + 256 G + 256^2 B``; 0 is unlabelled.

    Raises:
        RecordError: As :func:`~flmm_detseg.datasets.images.read_labels`; grey pictures are refused.
    """
    rgb = read_labels(path, record, "panoptic map", _PANOPTIC_MODES, size, as_rgb=True)[1].astype(np.int32)
    return rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
