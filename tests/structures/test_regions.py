"""Regions: what is one, where it lies in the cells of the vision maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flmm_detseg.errors import DataError
from flmm_detseg.structures import GridLevel, PatchGrid, Region

# A wide image in the middle of a square, and one that fills its view.
PADDED = PatchGrid((40, 70), (40, 70), 15, 0, (70, 70), (GridLevel(7, 7),))
WHOLE = PatchGrid((33, 57), (60, 60), 0, 0, (60, 60), (GridLevel(4, 5),))


def by_hand(mask: np.ndarray, grid: PatchGrid) -> torch.Tensor:
    """Every pixel cut into 40 x 40 pieces, each counted in the cell it falls into."""
    fine, (rows, cols) = 40, grid.view_grid
    y0, x0, y1, x1 = grid.view_fractions
    found = torch.zeros(rows, cols)
    for y, x in zip(*mask.nonzero()):
        inside = (np.arange(fine) + 0.5) / fine
        row = ((y + inside) / mask.shape[0] * (y1 - y0) + y0) * rows
        col = ((x + inside) / mask.shape[1] * (x1 - x0) + x0) * cols
        found += torch.outer(
            torch.bincount(torch.tensor(row).int(), minlength=rows).float(),
            torch.bincount(torch.tensor(col).int(), minlength=cols).float(),
        )
    return found / found.sum()


@pytest.mark.parametrize("grid", [PADDED, WHOLE], ids=["padded", "whole"])
def test_cells_count_as_far_as_the_region_covers_them(grid):
    height, width = grid.image_size
    mask = np.zeros((height, width), bool)
    mask[5:20, 9:30] = True
    mask[19:27, 12:14] = True
    torch.testing.assert_close(Region(mask=mask).weights(grid), by_hand(mask, grid), rtol=0, atol=2e-3)
    box = np.zeros((height, width), bool)
    box[3:17, 8:41] = True
    as_box, as_mask = Region(box_xyxy=(8, 3, 41, 17)).weights(grid), Region(mask=box).weights(grid)
    torch.testing.assert_close(as_box, as_mask)
    torch.testing.assert_close(as_box, by_hand(box, grid), rtol=0, atol=2e-3)
    # What lies outside of the image is cut off.
    torch.testing.assert_close(
        Region(box_xyxy=(-50, -3, width + 9, height)).weights(grid),
        Region(box_xyxy=(0, 0, width, height)).weights(grid),
    )


def test_a_point_lies_in_one_cell_and_axes_are_not_swapped():
    grid = PatchGrid((40, 80), (40, 80), 0, 0, (40, 80), (GridLevel(4, 8),))
    weights = Region(point_xy=(75.0, 12.0)).weights(grid)
    assert weights.nonzero().tolist() == [[1, 7]]
    assert float(weights[1, 7]) == 1
    assert Region(point_xy=(80, 40)).weights(grid).nonzero().tolist() == [[3, 7]]


def test_a_flipped_view_is_a_mask_like_its_copy():
    mask = np.random.default_rng(0).random((33, 57)) < 0.3
    places = torch.rand(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for view in (mask[:, ::-1], mask[::-1], mask[::2, ::-2]):
        grid = PatchGrid(view.shape, view.shape, 0, 0, view.shape, (GridLevel(4, 5),))
        ours, copied = Region(mask=view), Region(mask=view.copy())
        assert torch.equal(ours.weights(grid), copied.weights(grid))
        assert torch.equal(ours.spread(places, view.shape), copied.spread(places, view.shape))


def test_places_of_a_square_spread_evenly_over_the_region():
    grid = PatchGrid((9, 14), (9, 14), 0, 0, (9, 14), (GridLevel(9, 14),))
    places = torch.rand(40000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = np.random.default_rng(0).random((9, 14)) < 0.3
    one = np.zeros((9, 14), bool)
    one[8, 13] = True
    for region in (
        Region(mask=mask),
        Region(mask=one),
        Region(box_xyxy=(-3, 2.5, 4.5, 7)),
        Region(point_xy=(14, 0)),
        Region(point_xy=(3.2, 8.9)),
    ):
        x, y = region.spread(places, grid.image_size).unbind(-1)
        cells = (y.floor() * 14 + x.floor()).long()
        share = torch.bincount(cells, minlength=9 * 14).view(9, 14) / len(places)
        torch.testing.assert_close(share, region.weights(grid), rtol=0, atol=6e-3)
        assert not share[region.weights(grid) == 0].any()
        assert ((x % 1).std() - 12**-0.5).abs() < 0.02, "within pixels, too"


def test_a_stroke_draws_what_the_pen_covers():
    way = np.array([(3.0, 4.0), (20.5, 9.0), (31.0, -4.0), (24.0, 17.5)])
    dense = np.concatenate([np.linspace(a, b, 400) for a, b in zip(way, way[1:])])
    rows, cols = np.mgrid[:20, :30] + 0.5
    away = np.hypot(cols[..., None] - dense[:, 0], rows[..., None] - dense[:, 1]).min(-1)
    drawn = Region.stroke(way, 5, (20, 30)).mask
    assert (drawn == (away <= 2.5))[abs(away - 2.5) > 0.01].all()
    assert 100 < drawn.sum() < 300
    # However thin, there is a mark in every pixel that it passes through.
    thin = Region.stroke(way.tolist(), 0.1, (20, 30), image=1)
    inside = dense[(dense >= 0).all(1) & (dense < (30, 20)).all(1)].astype(int)
    assert thin.mask[inside[:, 1], inside[:, 0]].all()
    assert thin.mask.sum() < 2 * len({tuple(pixel) for pixel in inside.tolist()})
    assert thin.image == 1
    disc = Region.stroke([(10, 10)], 6, (20, 30)).mask
    assert abs(disc.sum() - np.pi * 9) < 5
    with pytest.raises(DataError, match="empty"):
        Region.stroke([(90, 90)], 4, (20, 30)).check([(20, 30)])


@pytest.mark.parametrize(
    ("points", "width", "message"),
    [
        ([], 3, "points"),
        ([(1, 2, 3)], 3, "points"),
        ([(1, float("nan"))], 3, "points"),
        ("ab", 3, "points"),
        ([(1, 2)], 0, "width"),
        ([(1, 2)], float("inf"), "width"),
    ],
    ids=str,
)
def test_what_is_no_stroke_is_refused(points, width, message):
    with pytest.raises(DataError, match=f"a stroke's {message}"):
        Region.stroke(points, width, (20, 30))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "given: none"),
        (dict(point_xy=(1, 2), box_xyxy=(0, 0, 1, 1)), "given: point_xy, box_xyxy"),
        (dict(box_xyxy=(5, 0, 5, 9)), "x0 < x1"),
        (dict(box_xyxy=(0, 0, 1)), "4 finite numbers"),
        (dict(point_xy=(float("nan"), 0)), "2 finite numbers"),
        (dict(point_xy=(10**400, 0)), "2 finite numbers"),
        (dict(mask=np.ones((3, 3))), "float64"),
        (dict(mask=np.ones(3, bool)), "bool array"),
        (dict(point_xy=(1, 1), image=-1), "number of"),
        (dict(point_xy=(1, 1), image=True), "number of"),
    ],
    ids=str,
)
def test_what_is_no_region_is_refused(arguments, message):
    with pytest.raises(DataError, match=message):
        Region(**arguments)


@pytest.mark.parametrize(
    ("region", "message"),
    [
        (Region(point_xy=(1, 1), image=2), "names image 2, the prompt has 1"),
        (Region(point_xy=(71, 1)), "outside"),
        (Region(box_xyxy=(70, 0, 80, 9)), "outside"),
        (Region(mask=np.ones((70, 40), bool)), "the image's size"),
        (Region(mask=np.zeros((40, 70), bool)), "empty"),
    ],
    ids=str,
)
def test_regions_lie_in_their_image(region, message):
    with pytest.raises(DataError, match=message):
        region.check([(40, 70)])


def test_what_people_give():
    assert Region.of((3, 4)) == Region(point_xy=(3.0, 4.0))
    assert Region.of([1, 2, 3, 4], image=1) == Region(box_xyxy=(1.0, 2.0, 3.0, 4.0), image=1)
    assert Region.of(np.array([1, 2])).point_xy == (1.0, 2.0)
    mask = np.ones((2, 4), bool)
    assert Region.of(mask).mask is mask
    for wrong in ("a box", (1, 2, 3), ("1", "2"), None, np.ones((2, 2, 2), bool), np.array(5)):
        with pytest.raises(DataError, match="a region"):
            Region.of(wrong)


def test_numbers_are_those_of_numpy_too_but_no_texts():
    region = Region(point_xy=(np.float32(1.5), np.int64(2)), image=np.int64(1))
    assert region == Region(point_xy=(1.5, 2.0), image=1)
    assert type(region.image) is int
    for values in (("1", "2", "3", "4"), (b"1", b"2", b"3", b"4"), (False, False, True, np.True_)):
        for make in (lambda box: Region(box_xyxy=box), Region.of):
            with pytest.raises(DataError, match="4 finite numbers are needed"):
                make(values)
    for image in (True, 1.0, -1, "1"):
        with pytest.raises(DataError, match="`image`"):
            Region(point_xy=(1, 1), image=image)
