"""Results made by hand, and random masks of all awkward kinds, for tests of exports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

from flmm_detseg.inference.export.exportable import Exportable
from flmm_detseg.inference.regions import Region


@dataclass(frozen=True)
class Result(Exportable):
    """What exports read of a result."""

    regions: Sequence[Region]
    image: np.ndarray = field(repr=False)


def region(mask: np.ndarray, label: str = "a star", score: float = 0.5, kind: str = "segment") -> Region:
    """A region whose box is that of its mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (0.0, 0.0, 0.0, 0.0)
    if len(rows):
        box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    return Region(kind, label, score, box, mask)


def result(*regions: Region, size: tuple[int, int] = (12, 17)) -> Result:
    """A result about a black image of the masks' size."""
    sizes = [found.mask.shape for found in regions if found.mask is not None]
    return Result(regions, np.zeros((*(sizes[0] if sizes else size), 3), np.uint8))


@st.composite
def masks(draw: st.DrawFn, size: tuple[int, int] | None = None) -> np.ndarray:
    """bool ``[H, W]``: noise (holes, parts that touch at a corner, the border), rectangles with holes, all, nothing."""
    height, width = size or (draw(st.integers(1, 14)), draw(st.integers(1, 14)))
    kind = draw(st.sampled_from(["noise", "noise", "rectangle", "full", "empty", "pixel"]))
    mask = np.zeros((height, width), dtype=bool)
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    if kind == "noise":
        mask = random.random((height, width)) < draw(st.sampled_from([0.15, 0.4, 0.6, 0.85]))
    elif kind == "rectangle":
        top, left = random.integers(height), random.integers(width)
        mask[top : top + 9, left : left + 9] = True
        mask[top + 2 : top + 4, left + 1 : left + 3] = False
    elif kind == "full":
        mask[:] = True
    elif kind == "pixel":
        mask[random.integers(height), random.integers(width)] = True
    return mask
