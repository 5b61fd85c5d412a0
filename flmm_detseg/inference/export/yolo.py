"""Results as YOLO segmentation labels: a line an object, its class and its outline as shares of the image's sides."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from flmm_detseg.inference.export.finite import checked
from flmm_detseg.inference.regions import WithRegions
from flmm_detseg.ops.outlines import corners, pixel_outlines
from flmm_detseg.utils.whole_files import dump_json


class YoloCounts(NamedTuple):
    """What a line cannot say as it is.

    Attributes:
        objects: Lines written.
        bridged: Objects of several parts or with holes: their outlines are one polygon, joined by lines of no width.
        boxes: Objects without a mask: their box is the polygon.
        empty: Regions without a pixel, which have no line.
    """

    objects: int = 0
    bridged: int = 0
    boxes: int = 0
    empty: int = 0


class YoloLabels:
    """Collects results; class numbers are given to labels in the order in which they come.

    Attributes:
        counts: Of all results so far.
    """

    def __init__(self) -> None:
        self._classes: dict[str, int] = {}
        self.counts = YoloCounts()

    def add(self, result: WithRegions) -> str:
        """Adds a result.

        Args:
            result: What was found.

        Returns:
            The image's label file: ``class x0 y0 x1 y1 ...`` a line; empty where nothing was found.

        Raises:
            RunError: A score or box is NaN or infinite.
        """
        height, width = result.image.shape[:2]
        lines = []
        bridged = boxes = empty = 0
        for region in checked(result.regions):
            number = self._classes.setdefault(region.label, len(self._classes))
            if region.mask is None:
                x0, y0, x1, y1 = region.box_xyxy
                rings = [np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])] if x1 > x0 and y1 > y0 else []
                boxes += len(rings)
            else:
                outlines = pixel_outlines(region.mask)
                rings = [corners(outline) for outline in (*outlines.outer, *outlines.holes)]
            if not rings:
                empty += 1
                continue
            bridged += len(rings) > 1
            shares = np.clip(joined(rings) / (width, height), 0, 1)
            lines.append(" ".join([str(number), *(f"{share:.6g}" for share in shares.ravel())]))
        found = (len(lines), bridged, boxes, empty)
        self.counts = YoloCounts(*map(sum, zip(self.counts, found, strict=True)))
        return "".join(f"{line}\n" for line in lines)

    @property
    def classes(self) -> tuple[str, ...]:
        """Labels in the order of their numbers."""
        return tuple(self._classes)

    def data_yaml(self) -> str:
        """The file that a training names; without a `path` in it, Ultralytics counts from its folder. Names are JSON
        texts, which are YAML too.
        """
        names = "".join(f"  {number}: {dump_json(name)}\n" for name, number in self._classes.items())
        return f"train: images\nval: images\nnames:{'' if names else ' {}'}\n{names}"


def joined(rings: list[np.ndarray]) -> np.ndarray:
    """One closed polygon of several: each further ring is walked from the nearest point of what is there, and back.

    The lines between them have no width: filled by the even-odd rule the polygon covers what the rings cover together.

    Args:
        rings: ``[N_i, 2]``, at least one.

    Returns:
        ``[M, 2]``.
    """
    path = np.asarray(rings[0], dtype=np.float64)
    for ring in rings[1:]:
        distances, nearest = cKDTree(path).query(ring)
        there = int(distances.argmin())
        here = int(nearest[there])
        ring = np.roll(ring, -there, axis=0)
        path = np.concatenate([path[: here + 1], ring, ring[:1], path[here:]])
    return path
