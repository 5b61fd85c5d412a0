"""Run lengths of masks: COCO's own, on any grid; damaged ones are refused before anything is made of them."""

from __future__ import annotations

import base64
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from flmm_detseg.errors import DataError
from flmm_detseg.language import MaskRuns

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


def random_mask(size: tuple[int, int], seed: int) -> np.ndarray:
    """From empty to full, with long and short runs."""
    generator = np.random.default_rng(seed)
    coarse = generator.random((1 + size[0] // 4, 1 + size[1] // 4)) < generator.random()
    return np.kron(coarse, np.ones((4, 4), dtype=bool))[: size[0], : size[1]]


@settings(max_examples=60, deadline=None)
@given(size=SIZES, seed=st.integers(0, 1000))
def test_runs_are_those_of_pycocotools(size, seed):
    mask = random_mask(size, seed)
    runs = MaskRuns.of(mask, size)
    theirs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert base64.b64decode(runs.to_base64()) == theirs["counts"]
    assert np.array_equal(runs.draw(size), mask)
    assert MaskRuns.from_base64(runs.to_base64(), size) == runs
    assert MaskRuns.from_base64(runs.to_base64().rstrip("="), size) == runs


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(0, 70), min_size=1, max_size=9), rows=st.integers(1, 5))
def test_any_runs_that_cover_the_grid_are_read_as_pycocotools_reads_them(lengths, rows):
    """Also those that it would not write: empty ones."""
    lengths[-1] += -sum(lengths) % rows
    size = (rows, sum(lengths) // rows)
    if not size[1]:
        return
    theirs = coco_mask.frPyObjects({"size": list(size), "counts": lengths}, *size)
    runs = MaskRuns(size, theirs["counts"].decode())
    assert np.array_equal(runs.draw(size), coco_mask.decode(theirs).astype(bool))


def test_a_coarse_grid_takes_the_pixels_in_the_middle_of_its_cells():
    mask = np.zeros((9, 6), dtype=bool)
    mask[1, 1] = mask[7, 3] = True
    runs = MaskRuns.of(mask, (3, 2))
    assert runs.draw((3, 2)).tolist() == [[True, False], [False, False], [False, False]]
    drawn = runs.draw((9, 6))
    assert drawn.sum() == 9
    assert drawn[:3, :3].all()
    finer = MaskRuns.of(mask, (18, 12)).draw((9, 6))
    assert np.array_equal(finer, mask)


# On 4 x 4 cells: 5 outside, 3 inside, 8 outside.
GOOD = "538"


@pytest.mark.parametrize(
    "counts",
    [
        "",
        "53",  # ends early
        "539",  # one cell too many
        "5380" + "1",  # a run after the last
        "5O8",  # a negative run
        "5" + "P" * 9 + "0",  # a count of more bits than any image has pixels
        "5h",  # goes on, and ends
        "53 8",
        "5\u0663" + "8",
        "o" * 1000,
    ],
)
def test_wrong_counts_are_refused(counts):
    assert MaskRuns((4, 4), GOOD).draw((4, 4)).sum() == 3
    with pytest.raises(DataError, match="run lengths"):
        MaskRuns((4, 4), counts)


@pytest.mark.parametrize(
    "code", ["", "=", "A", "NTM4=NTM4", "N T M 4", "NTM4é", "\ud800", "/////w==", "ring"]
)
def test_what_is_no_base64_of_runs_is_refused(code):
    assert MaskRuns.from_base64("NTM4", (4, 4)).counts == GOOD
    with pytest.raises(DataError, match="run lengths"):
        MaskRuns.from_base64(code, (4, 4))


def test_a_short_text_never_becomes_a_large_array():
    size = (30_000, 30_000)
    counts = "PPPPPP?"  # one run of 15 * 2^30
    code = base64.b64encode(counts.encode()).decode()
    tracemalloc.start()
    with pytest.raises(DataError, match="run lengths"):
        MaskRuns.from_base64(code, size)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
