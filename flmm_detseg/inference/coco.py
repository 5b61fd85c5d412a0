"""Results as a whole COCO file: images, categories, annotations, as every COCO tool loads it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from flmm_detseg.errors import RunError
from flmm_detseg.utils.rle import encode_rle


class Grounded(Protocol):
    """A result, see :class:`~flmm_detseg.inference.result.GroundingResult`."""

    @property
    def image(self) -> np.ndarray:
        """RGB uint8 ``[H, W, 3]``."""

    def to_coco(self) -> list[dict[str, Any]]:
        """Annotations of all its phrases."""


def annotation(
    phrase: str,
    score: float,
    box_xyxy: Sequence[float] | np.ndarray,
    mask: np.ndarray | None,
    spans: Sequence[tuple[int, int]],
) -> dict[str, Any]:
    """A phrase and what was found of it, without ids.

    Args:
        phrase: Its words.
        score: In [0, 1].
        box_xyxy: Half-open pixel box.
        mask: bool ``[H, W]``; None where there is a box alone: ``segmentation`` is then empty, ``area`` the box's.
        spans: Its characters in the text that it is from.

    Returns:
        JSON-ready: ``segmentation`` (compressed RLE, counts as text), ``bbox`` ``[x, y, w, h]``, ``area``, ``iscrowd``,
        ``score``, ``phrase``, ``spans``.

    Raises:
        RunError: The score or the box is NaN or infinite.
    """
    left, top, right, bottom = (float(value) for value in box_xyxy)
    if not all(map(math.isfinite, (score, left, top, right, bottom))):
        raise RunError(
            f"{phrase!r}: the score {score} or the box {[left, top, right, bottom]} is no number, which JSON cannot "
            "hold; check the checkpoint and its precision"
        )
    return {
        "segmentation": [] if mask is None else encode_rle(mask),
        "bbox": [left, top, right - left, bottom - top],
        "area": (right - left) * (bottom - top) if mask is None else int(np.count_nonzero(mask)),
        "iscrowd": 0,
        "score": float(score),
        "phrase": phrase,
        "spans": [list(span) for span in spans],
    }


class CocoFile:
    """Collects results. Each distinct phrase is a category; an image that occurs again keeps its id.

    A phrase whose mask is empty has a category and no annotation: COCO knows no object without pixels.
    """

    def __init__(self) -> None:
        self._images: dict[str, dict[str, Any]] = {}
        self._categories: dict[str, int] = {}
        self._annotations: list[dict[str, Any]] = []

    def add(self, result: Grounded, file_name: str) -> list[dict[str, Any]]:
        """Adds a result.

        Args:
            result: What was grounded.
            file_name: The image's name in the file.

        Returns:
            Annotations of all its phrases, as :meth:`GroundingResult.to_coco` gives them; those with an empty mask are
            not in the file, and their ``id`` is None.

        Raises:
            RunError: A score or box is NaN or infinite.
        """
        found = result.to_coco()
        height, width = result.image.shape[:2]
        image = {"id": len(self._images) + 1, "file_name": file_name, "height": height, "width": width}
        image = self._images.setdefault(file_name, image)
        for entry in found:
            category = self._categories.setdefault(entry["phrase"], len(self._categories) + 1)
            entry |= {"id": None, "image_id": image["id"], "category_id": category}
            if entry["area"]:
                entry["id"] = len(self._annotations) + 1
                self._annotations.append(entry)
        return found

    def content(self) -> dict[str, Any]:
        """The file, JSON-ready."""
        categories = [
            {"id": number, "name": phrase, "supercategory": "phrase"}
            for phrase, number in self._categories.items()
        ]
        return {
            "info": {"description": "phrases and their masks by flmm_detseg"},
            "licenses": [],
            "images": list(self._images.values()),
            "annotations": self._annotations,
            "categories": categories,
        }
