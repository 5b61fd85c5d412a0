"""Colours of feature maps, and bars of shares."""

import numpy as np
import pytest

from flmm_detseg.visualization.canvas import phrase_colour
from flmm_detseg.visualization.features import draw_features, draw_shares, feature_colours


def test_components_become_colours_strongest_first():
    rng = np.random.default_rng(0)
    sources = rng.random((3, 12, 15))
    mixing = np.linalg.qr(rng.normal(size=(20, 3)))[0] * [9.0, 3.0, 1.0]
    colours = feature_colours(np.einsum("cs,shw->chw", mixing, sources))
    for index in range(3):
        values = np.corrcoef(colours[..., index].ravel(), sources[index].ravel())[0, 1]
        assert abs(values) > 0.85
    assert (colours.min(), colours.max()) == (0, 255)


def test_colours_depend_on_neither_offset_nor_scale_nor_sign():
    maps = np.random.default_rng(1).normal(size=(7, 6, 5))
    np.testing.assert_allclose(
        feature_colours(maps).astype(int), feature_colours(100 + 5 * maps).astype(int), atol=1
    )


@pytest.mark.parametrize("maps", [np.ones((4, 3, 3)), np.zeros((1, 1, 1))])
def test_maps_without_a_difference_are_grey(maps):
    assert (feature_colours(maps) == 128).all()


def test_one_channel_has_one_component():
    colours = feature_colours(np.arange(12.0).reshape(1, 3, 4))
    assert (colours[..., 1:] == 128).all()
    assert (np.diff(colours[..., 0].ravel().astype(int)) >= 0).all()
    assert draw_features(np.arange(12.0).reshape(1, 3, 4), (30, 40), cell=80).shape == (60, 80, 3)


def test_bars_are_as_high_as_their_shares():
    picture = draw_shares(
        {"detection": [0.0, 0.5, 1.0], "vqa": [1.0, 0.0, 0.0]}, ["layer 1", "layer 2", "layer 3"]
    )
    blue = (picture == phrase_colour(1)).all(-1)
    widths = blue[24:116].sum(0)
    assert sorted(set(widths[widths > 0])) == [29, 57]  # rows of half a bar and of a whole one
    with pytest.raises(ValueError, match="3 layers"):
        draw_shares({"a": [1.0]}, ["1", "2", "3"])
