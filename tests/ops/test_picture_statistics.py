"""Statistics of pictures: finite for whatever there is, and the same for the same picture in another size."""

from __future__ import annotations

import numpy as np
import pytest

from flmm_detseg.datasets.tinyworld.render import make_scene
from flmm_detseg.ops.picture_statistics import picture_statistics


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (2000, 3), (128, 128), (37, 411)])
@pytest.mark.parametrize("value", [0, 255])
def test_plain_pictures_of_any_size_have_the_same_finite_numbers(size, value):
    found = picture_statistics(np.full((*size, 3), value, np.uint8))
    assert found.shape == (157,)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found, picture_statistics(np.full((128, 128, 3), value, np.uint8)))


def test_enlarging_a_picture_whole_times_changes_little_and_another_picture_much():
    first, second = make_scene(1, 0).image, make_scene(1, 1).image
    own = picture_statistics(first)
    larger = picture_statistics(first.repeat(4, 0).repeat(4, 1))
    assert np.abs(own - larger).mean() < np.abs(own - picture_statistics(second)).mean() / 2


def test_histograms_are_shares():
    found = picture_statistics(make_scene(1, 2).image)
    edges, directions = found[32:39], found[39:47]
    hues, values = found[47:79], found[79:87]
    for part in (edges, directions, hues, values):
        assert (part**2).sum() == pytest.approx(1, abs=1e-3)


def test_brightness_hue_and_channels_are_what_they_are_called():
    red = np.zeros((128, 128, 3), np.uint8)
    red[..., 0] = 255
    found = picture_statistics(red)
    brightness, red_green = found[:2]
    assert brightness == pytest.approx(1 / 3)
    assert red_green == pytest.approx(1)
    assert found[47 + 3] == pytest.approx(1)  # the first eighth of hues, the highest saturation
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 1), dtype=np.uint8).repeat(3, 2)
    np.testing.assert_allclose(picture_statistics(noise)[-6:], 1, atol=0.02)  # grey: channels are alike
