"""Regions become groups of patches: the transform of boxes, dilation, letterbox, pixels of a patch."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import tiny_llava, tiny_llava_next

from flmm_detseg.cache.regions.partition import (
    box_tiles,
    dilate_tiles,
    letterbox_tiles,
    mask_tiles,
    partition_like,
    partition_tiles,
)
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.store.keys import cut_tiles
from flmm_detseg.structures import GridLevel, PatchGrid
from flmm_detseg.structures.partition import BG, OBJ, PAD

ROWS = COLS = 14


def grid_of(height: int, width: int, side: int = 112, rows: int = ROWS) -> PatchGrid:
    longest = max(height, width)
    resized = (max(1, height * side // longest), max(1, width * side // longest))
    top, left = (side - resized[0]) // 2, (side - resized[1]) // 2
    return PatchGrid((height, width), resized, top, left, (side, side), (GridLevel(rows, rows),))


def test_box_of_the_whole_image_is_all_but_letterbox():
    grid = grid_of(200, 400)
    partition = partition_tiles(grid, box_tiles(grid, np.array([[0, 0, 400, 200]])), dilate=0)
    assert set(np.unique(partition.group)) == {OBJ, PAD}
    rows = partition.group.reshape(ROWS, COLS)
    # 56 of 112 pixels are image, centred: patches of 8 pixels in rows 3.5 to 10.5.
    assert (rows[:3] == PAD).all()
    assert (rows[11:] == PAD).all()
    assert (rows[3:11] == OBJ).all()


@pytest.mark.parametrize("size", [(112, 112), (200, 400), (400, 200), (37, 91), (1170, 2532)])
def test_boxes_touch_the_patches_that_show_their_pixels(size):
    grid = grid_of(*size)
    rng = np.random.default_rng(0)
    for _ in range(20):
        x = np.sort(rng.choice(size[1] + 1, 2, replace=False))
        y = np.sort(rng.choice(size[0] + 1, 2, replace=False))
        box = np.array([[x[0], y[0], x[1], y[1]]])
        mask = np.zeros(size, dtype=bool)
        mask[y[0] : y[1], x[0] : x[1]] = True
        np.testing.assert_array_equal(box_tiles(grid, box), mask_tiles(grid, mask))
        centre_y = ((y[0] + y[1]) / 2 * grid.resized_size[0] / size[0] + grid.pad_top) / 8
        centre_x = ((x[0] + x[1]) / 2 * grid.resized_size[1] / size[1] + grid.pad_left) / 8
        assert box_tiles(grid, box)[int(centre_y), int(centre_x)]


def test_box_on_patch_edges_marks_exactly_its_patches():
    tiles = box_tiles(grid_of(112, 112), np.array([[8, 16, 24, 24]]))
    assert np.argwhere(tiles).tolist() == [[2, 1], [2, 2]]


def test_boxes_outside_and_empty_ones_mark_nothing_and_odd_numbers_are_refused():
    grid = grid_of(112, 112)
    assert not box_tiles(grid, np.array([[200, 0, 300, 50], [5, 5, 5, 9], [9, 9, 4, 4]])).any()
    with pytest.raises(DataError, match="finite"):
        box_tiles(grid, np.array([[0, 0, np.nan, 4]]))


def test_dilation_widens_in_all_directions_but_not_around_the_edge():
    tiles = np.zeros((6, 6), dtype=bool)
    tiles[0, 0] = tiles[3, 4] = True
    wide = dilate_tiles(tiles, 1)
    expected = np.zeros((6, 6), dtype=bool)
    expected[0:2, 0:2] = expected[2:5, 3:6] = True
    np.testing.assert_array_equal(wide, expected)
    assert dilate_tiles(tiles, 2)[5, 5]
    assert not dilate_tiles(tiles, 2)[5, 0]
    np.testing.assert_array_equal(dilate_tiles(tiles, 0), tiles)


def test_dilated_objects_do_not_enter_the_letterbox():
    grid = grid_of(200, 400)
    partition = partition_tiles(grid, box_tiles(grid, np.array([[0, 0, 30, 30]])), dilate=3)
    np.testing.assert_array_equal(partition.group == PAD, letterbox_tiles(grid).ravel())
    assert len(partition.background) + len(partition.objects) + len(partition.letterbox) == ROWS * COLS


def test_no_box_is_all_background_and_a_mask_counts_as_its_union():
    grid = grid_of(112, 112)
    assert (partition_tiles(grid, box_tiles(grid, np.zeros((0, 4)))).group == BG).all()
    masks = np.zeros((2, 112, 112), dtype=bool)
    masks[0, 0, 0] = masks[1, 111, 111] = True
    partition = partition_tiles(grid, mask_tiles(grid, masks), dilate=0)
    assert partition.objects.tolist() == [0, ROWS * COLS - 1]
    with pytest.raises(DataError, match="size"):
        mask_tiles(grid, masks[:, :50])


def test_mask_of_a_match_makes_everything_else_an_object():
    grid = grid_of(200, 400)
    background = np.zeros(ROWS * COLS, dtype=bool)
    background[:60] = True
    partition = partition_like(grid, background)
    assert partition.background.tolist() == list(range(60))
    assert (partition.group[60:] == OBJ).all()
    partition = partition_like(grid, background, drop_letterbox=True)
    assert (partition.group[60:] == np.where(letterbox_tiles(grid).ravel()[60:], PAD, OBJ)).all()


def test_wrong_settings_are_named():
    with pytest.raises(ConfigError, match="dilate"):
        partition_tiles(grid_of(112, 112), box_tiles(grid_of(112, 112), np.zeros((0, 4))), dilate=-1)
    with pytest.raises(DataError, match="patches"):
        partition_tiles(grid_of(112, 112), np.zeros(5, dtype=bool))
    image = np.zeros((50, 80, 3), np.uint8)
    with pytest.raises(ConfigError, match="one square view"):
        letterbox_tiles(tiny_llava_next().processor.process_image(image)[1])


def test_letterbox_patches_hold_the_padding_colour_only():
    processor = tiny_llava().processor
    rng = np.random.default_rng(0)
    for size in ((30, 90), (90, 30), (56, 56), (41, 55)):
        pixels, grid = processor.process_image(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        tiles = cut_tiles(processor.denormalise(pixels), 14)
        flat = (tiles.reshape(16, -1, 3) == tiles.reshape(16, -1, 3)[:, :1]).all((1, 2))
        np.testing.assert_array_equal(flat, letterbox_tiles(grid).ravel())
