"""Results as a whole COCO file: images, categories, annotations, as every COCO tool loads it."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np


class Grounded(Protocol):
    """A result, see :class:`~flmm_detseg.inference.result.GroundingResult`."""

    @property
    def image(self) -> np.ndarray:
        """RGB uint8 ``[H, W, 3]``."""

    def to_coco(self) -> list[dict[str, Any]]:
        """Annotations of all its phrases."""


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
