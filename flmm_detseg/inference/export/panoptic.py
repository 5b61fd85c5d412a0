"""Results as COCO panoptic maps: every pixel belongs to one segment at most."""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np

from flmm_detseg.inference.export.finite import checked
from flmm_detseg.inference.regions import WithRegions
from flmm_detseg.visualization.canvas import phrase_colour


class PanopticCounts(NamedTuple):
    """What a map cannot hold.

    Attributes:
        segments: Segments written.
        overlap_pixels: Pixels that a region lost to one with a higher score, summed over regions.
        covered: Regions without a pixel left, which are not written.
        boxes: Regions without a mask, which are not written.
        empty: Regions with an empty mask, which are not written.
    """

    segments: int = 0
    overlap_pixels: int = 0
    covered: int = 0
    boxes: int = 0
    empty: int = 0


class PanopticFile:
    """Collects results. Each distinct label is a category (a thing); each region is a segment of its own.

    Where masks overlap, the higher score wins, of equal ones the first.

    Attributes:
        counts: Of all results so far.
    """

    def __init__(self) -> None:
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._categories: dict[str, int] = {}
        self.counts = PanopticCounts()

    def add(self, result: WithRegions, file_name: str, map_name: str) -> np.ndarray:
        """Adds a result.

        Args:
            result: What was found.
            file_name: Of the image.
            map_name: Of the PNG that the map is to be stored as.

        Returns:
            The map, RGB uint8 ``[H, W, 3]``; id = R + 256 G + 65536 B, 0 where no segment is. Ids are those of colours
            that differ visibly.

        Raises:
            RunError: A score or box is NaN or infinite; nothing is added.
        """
        height, width = result.image.shape[:2]
        owner = np.full((height, width), -1, dtype=np.int32)
        best = np.full((height, width), -np.inf)
        areas, boxes, labels = [], 0, []
        for index, region in enumerate(checked(result.regions)):
            labels.append(region.label)
            if region.mask is None:
                boxes += 1
                areas.append(0)
                continue
            areas.append(int(np.count_nonzero(region.mask)))
            won = region.mask & (region.score > best)
            owner[won], best[won] = index, region.score
        left = np.bincount(owner[owner >= 0], minlength=len(labels))
        picture = np.zeros((height, width, 3), dtype=np.uint8)
        segments: list[dict[str, Any]] = []
        taken: set[int] = {0}
        for index, label in enumerate(labels):
            category = self._categories.setdefault(label, len(self._categories) + 1)
            if not left[index]:
                continue
            number = _free_id(index, taken)
            mask = owner == index
            picture[mask] = (number % 256, number // 256 % 256, number // 65536)
            segments.append(
                {
                    "id": number,
                    "category_id": category,
                    "area": int(left[index]),
                    "bbox": list(cv2.boundingRect(mask.astype(np.uint8))),
                    "iscrowd": 0,
                }
            )
        image_id = len(self._images) + 1
        self._images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        self._annotations.append({"image_id": image_id, "file_name": map_name, "segments_info": segments})
        covered = sum(area > 0 and not rest for area, rest in zip(areas, left, strict=True))
        empty = areas.count(0) - boxes
        found = (len(segments), sum(areas) - int(left.sum()), covered, boxes, empty)
        self.counts = PanopticCounts(*map(sum, zip(self.counts, found, strict=True)))
        return picture

    def content(self) -> dict[str, Any]:
        """The JSON file beside the maps, JSON-ready."""
        return {
            "info": {"description": "phrases and their masks by flmm_detseg"},
            "licenses": [],
            "images": self._images,
            "annotations": self._annotations,
            "categories": [
                {"id": number, "name": label, "supercategory": "phrase", "isthing": 1}
                for label, number in self._categories.items()
            ],
        }


def _free_id(index: int, taken: set[int]) -> int:
    """Id of the colour of the region with this index in every picture, or the next free one."""
    red, green, blue = phrase_colour(index)
    number = red + 256 * green + 65536 * blue
    while number in taken:
        number = (number + 1) % 2**24
    taken.add(number)
    return number
