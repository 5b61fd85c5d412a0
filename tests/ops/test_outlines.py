"""Outlines against a count of crossings."""

import numpy as np
import pytest
from found import masks
from hypothesis import given, settings

from flmm_detseg.ops.outlines import corners, pixel_outlines


def filled(rings: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Pixels whose centre has an odd number of upright edges to its left."""
    crossings = np.zeros((size[0], size[1] + 1), dtype=bool)
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            assert x0 == x1 or y0 == y1
            if x0 == x1:
                crossings[min(y0, y1) : max(y0, y1), x0] ^= True
    return np.logical_xor.accumulate(crossings, axis=1)[:, :-1]


@settings(max_examples=50, deadline=None)
@given(masks())
def test_outlines_enclose_the_mask_and_nothing_else(mask):
    found = pixel_outlines(mask)
    rings = [corners(outline) for outline in (*found.outer, *found.holes)]
    assert all(len(ring) >= 4 for ring in rings)
    np.testing.assert_array_equal(filled(rings, mask.shape), mask)


def test_parts_and_holes_are_told_apart():
    mask = np.zeros((9, 9), dtype=bool)
    mask[1:6, 1:6] = True
    mask[2:5, 2:5] = False
    mask[3, 3] = True  # an island in the hole
    mask[6, 6] = True  # touches at a corner: the same part
    found = pixel_outlines(mask)
    assert (len(found.outer), len(found.holes)) == (2, 1)
    assert corners(found.holes[0]).tolist() in [
        np.roll([[2, 2], [5, 2], [5, 5], [2, 5]][::turn], by, axis=0).tolist()
        for turn in (1, -1)
        for by in range(4)
    ]


@pytest.mark.parametrize("size", [(1, 7), (7, 1)])
def test_a_line_has_four_corners(size):
    (outline,), holes = pixel_outlines(np.ones(size, dtype=bool))
    assert holes == []
    assert sorted(corners(outline).tolist()) == sorted(
        [[0, 0], [size[1], 0], [size[1], size[0]], [0, size[0]]]
    )
