"""Results as a whole COCO file: images, categories, annotations, as every COCO tool loads it."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from flmm_detseg.errors import ConfigError
from flmm_detseg.inference.export.finite import checked
from flmm_detseg.inference.regions import Region, WithRegions
from flmm_detseg.ops.outlines import corners, pixel_outlines
from flmm_detseg.utils.rle import encode_rle

# Simplifications that are tried, coarsest first: distance of the polygon from the outline, pixels.
_EPSILONS = (4.0, 2.0, 1.0, 0.5)


def annotation(region: Region, image_id: int | str, category_id: int, number: int | None) -> dict[str, Any]:
    """A region as a COCO annotation, its mask as compressed RLE: any shape with its holes and parts.

    Args:
        region: With finite numbers. Without a mask it is a box: ``segmentation`` is an empty list, ``area`` the box's.
        image_id: Written as it is.
        category_id: Written as it is.
        number: ``id``; None for what gets into no file.

    Returns:
        JSON-ready: id, image_id, category_id, segmentation, bbox ``[x, y, w, h]``, area, iscrowd, score, score_of,
        phrase, spans.
    """
    left, top, right, bottom = region.box_xyxy
    width, height = right - left, bottom - top
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": [] if region.mask is None else encode_rle(region.mask),
        "bbox": [left, top, width, height],
        "area": width * height if region.mask is None else int(np.count_nonzero(region.mask)),
        "iscrowd": 0,
        "score": region.score,
        "score_of": region.score_of,
        "phrase": region.label,
        "spans": [list(span) for span in region.spans],
    }


class CocoFile:
    """Collects results. Each distinct label (phrase or class) is a category; an image that occurs again keeps its id.

    A phrase whose mask is empty has a category and no annotation: COCO knows no object without pixels.

    Args:
        polygon_tolerance: None writes every mask as compressed RLE. A number writes polygons (pixel edges, simplified
            as far as the tolerance allows) where pycocotools draws of them a mask whose IoU with the true one is at
            least 1 minus this number; 0: only where they are exact. Others stay RLE, always those with holes, which
            COCO's polygons cannot have.

    Attributes:
        num_polygons: Annotations written as polygons.
        num_rle: Annotations written as RLE.

    Raises:
        ConfigError: The tolerance is not in [0, 1).
    """

    def __init__(self, polygon_tolerance: float | None = None) -> None:
        if polygon_tolerance is not None and not 0 <= polygon_tolerance < 1:
            raise ConfigError(
                f"the tolerance of polygons is {polygon_tolerance}; a share of the mask from 0 (exact) to below 1 is "
                "needed"
            )
        self._tolerance = polygon_tolerance
        self.num_polygons = 0
        self.num_rle = 0
        self._images: dict[str, dict[str, Any]] = {}
        self._categories: dict[str, int] = {}
        self._annotations: list[dict[str, Any]] = []

    def add(self, result: WithRegions, file_name: str) -> list[dict[str, Any]]:
        """Adds a result.

        Args:
            result: What was found.
            file_name: The image's name in the file.

        Returns:
            Annotations of all its regions, see :func:`annotation`; those with an empty mask are not in the file, and
            their ``id`` is None.

        Raises:
            RunError: A score or box is NaN or infinite; nothing is added.
        """
        height, width = result.image.shape[:2]
        image = {"id": len(self._images) + 1, "file_name": file_name, "height": height, "width": width}
        found = []
        for region in checked(result.regions):
            entry = annotation(region, 0, 0, None)
            if region.mask is not None and entry["area"] and self._tolerance is not None:
                entry["segmentation"] = polygons(region.mask, self._tolerance) or entry["segmentation"]
            found.append(entry)
        image = self._images.setdefault(file_name, image)
        for entry in found:
            category = self._categories.setdefault(entry["phrase"], len(self._categories) + 1)
            entry |= {"image_id": image["id"], "category_id": category}
            if entry["area"]:
                entry["id"] = len(self._annotations) + 1
                self._annotations.append(entry)
                self.num_rle += isinstance(entry["segmentation"], dict)
                self.num_polygons += bool(entry["segmentation"]) and isinstance(entry["segmentation"], list)
        return found

    def content(self) -> dict[str, Any]:
        """The file, JSON-ready."""
        categories = [
            {"id": number, "name": label, "supercategory": "phrase"}
            for label, number in self._categories.items()
        ]
        return {
            "info": {"description": "phrases and their masks by flmm_detseg"},
            "licenses": [],
            "images": list(self._images.values()),
            "annotations": self._annotations,
            "categories": categories,
        }


def polygons(mask: np.ndarray, tolerance: float = 0.0) -> list[list[float]] | None:
    """A mask as COCO polygons, one a connected part.

    Args:
        mask: bool ``[H, W]``, not empty.
        tolerance: How far the IoU of what pycocotools draws may be below 1.

    Returns:
        ``[[x0, y0, x1, y1, ...], ...]`` in pixels, at pixel edges where exact; None where polygons cannot be as near:
        the mask has holes.
    """
    outlines = pixel_outlines(mask)
    if outlines.holes and tolerance == 0:
        return None
    edges = [corners(outline).astype(np.int32) for outline in outlines.outer]
    for epsilon in (*(_EPSILONS if tolerance else ()), 0.0):
        points = [cv2.approxPolyDP(edge[:, None], epsilon, True)[:, 0] if epsilon else edge for edge in edges]
        if any(len(part) < 3 for part in points):
            continue
        found = [part.astype(float).ravel().tolist() for part in points]
        if _iou(found, mask) >= 1 - tolerance:
            return found
    return None


def _iou(parts: list[list[float]], mask: np.ndarray) -> float:
    drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parts, *mask.shape))).astype(bool)
    return float(np.count_nonzero(drawn & mask) / np.count_nonzero(drawn | mask))
