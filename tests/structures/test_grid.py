from __future__ import annotations

import pytest

from flmm_detseg.errors import ConfigError
from flmm_detseg.structures import GridLevel, PatchGrid


@pytest.mark.parametrize(
    ("pad", "length", "start", "size"),
    [
        (45, 246, 8, 47),  # 8.57 is floored, 46.86 rounded
        (31, 274, 5, 52),  # 5.90, 52.19
        (43, 250, 8, 48),  # 8.19, 47.62
        (42, 252, 8, 48),  # 8, 48
        (167, 2, 31, 1),  # 31.81, 0.38: one column stays
    ],
)
def test_crop_window_floors_its_start_and_rounds_its_length(pad, length, start, size):
    level = (GridLevel(24, 24),)
    wide = PatchGrid((100, 100), (length, 336), pad, 0, (336, 336), level)
    high = PatchGrid((100, 100), (336, length), 0, pad, (336, 336), level)
    window = slice(start, start + size)
    assert wide.crop_window((64, 64)) == (window, slice(0, 64))
    assert high.crop_window((64, 64)) == (slice(0, 64), window)


def test_there_is_no_map_over_an_image_of_which_the_middle_is_seen():
    grid = PatchGrid((60, 90), (56, 84), 0, -14, (56, 56), (GridLevel(4, 4),))
    assert grid.cropped
    with pytest.raises(ConfigError, match="sees the middle of an image only"):
        grid.crop_window((4, 4))
    with pytest.raises(ConfigError, match="sees the middle of an image only"):
        _ = grid.view_fractions
    # Half of one pixel is none: the crop begins at the edge.
    assert PatchGrid((60, 61), (56, 57), 0, 0, (56, 56), (GridLevel(4, 4),)).cropped
    assert not PatchGrid((60, 60), (56, 56), 0, 0, (56, 56), (GridLevel(4, 4),)).cropped
