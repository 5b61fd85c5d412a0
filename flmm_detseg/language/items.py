"""The content of an answer: boxes, masks and words, in canonical coordinates. Immutable, checked when made."""

from __future__ import annotations

from dataclasses import dataclass

from flmm_detseg.errors import DataError
from flmm_detseg.language.coordinates import MAX_COORDINATE
from flmm_detseg.language.mask_runs import MaskRuns

Box = tuple[int, int, int, int]
Polygon = tuple[tuple[int, int], ...]


def _check_coordinates(values: tuple[int, ...], what: str) -> None:
    for value in values:
        # bool is an int, and numpy integers would break equality of types after a round trip through JSON.
        if type(value) is not int or not 0 <= value <= MAX_COORDINATE:
            raise DataError(
                f"{what}: {value!r} is no integer in 0..{MAX_COORDINATE}; quantise the coordinates first"
            )


@dataclass(frozen=True)
class BoxItem:
    """A detected object.

    Attributes:
        label: Its name; :func:`~flmm_detseg.language.wording.normalise_label` says what survives the text.
        box: ``(x1, y1, x2, y2)``, integers 0..999 with ``x1 <= x2`` and ``y1 <= y2``.
        score: Confidence in 0..1, or None; never written into the text.
    """

    label: str
    box: Box
    score: float | None = None

    def __post_init__(self) -> None:
        """Raises DataError for a box that is not four ordered integers in 0..999."""
        if len(self.box) != 4:
            raise DataError(f"box of {self.label!r} has {len(self.box)} values, not 4")
        _check_coordinates(self.box, f"box of {self.label!r}")
        if self.box[0] > self.box[2] or self.box[1] > self.box[3]:
            raise DataError(f"box of {self.label!r} has swapped corners: {self.box}")


@dataclass(frozen=True)
class MaskItem:
    """A segmented object: polygons, run lengths, or a reference to a mask that a head reads at a ``<SEG>`` token.

    Attributes:
        label: Its name.
        polygons: Parts, each at least three ``(x, y)`` points in 0..999; their union is the mask.
        seg_index: Which ``<SEG>`` of the text it is, counted from 0 over the whole text.
        runs: Run lengths on a grid. Exactly one of the three is not None.
    """

    label: str
    polygons: tuple[Polygon, ...] | None = None
    seg_index: int | None = None
    runs: MaskRuns | None = None

    def __post_init__(self) -> None:
        """Raises DataError unless exactly one of polygons, seg_index and runs is there and well-formed."""
        if sum(value is not None for value in (self.polygons, self.seg_index, self.runs)) != 1:
            raise DataError(f"mask of {self.label!r} needs one of polygons, seg_index and runs")
        if self.polygons is None:
            return
        if not self.polygons:
            raise DataError(f"mask of {self.label!r} has no polygon; leave the item out")
        for polygon in self.polygons:
            if len(polygon) < 3 or any(len(point) != 2 for point in polygon):
                raise DataError(f"mask of {self.label!r} has a polygon that is not at least 3 points (x, y)")
            _check_coordinates(
                tuple(value for point in polygon for value in point), f"mask of {self.label!r}"
            )


@dataclass(frozen=True)
class JointAnswer:
    """The three sections of an answer; None: the section is absent, an empty tuple: it says ``none``."""

    answer: str | None = None
    detections: tuple[BoxItem, ...] | None = None
    segmentations: tuple[MaskItem, ...] | None = None
