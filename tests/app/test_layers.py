"""The layers of the page have the pixels that they claim."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from flmm_detseg.app import layers


def opened(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))


def test_a_small_picture_keeps_its_pixels_and_a_large_one_is_reduced():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    content, kind = layers.picture_file(pixels)
    assert kind == "image/png"
    np.testing.assert_array_equal(opened(content)[..., :3], pixels)
    content, kind = layers.picture_file(np.zeros((600, 2048, 3), dtype=np.uint8))
    assert kind == "image/jpeg"
    assert opened(content).shape[:2] == (300, 1024)


def test_a_mask_is_tinted_inside_and_seen_through_outside():
    mask = np.zeros((500, 500), dtype=bool)
    mask[100:300, 200:400] = True
    filled, border = (opened(layers.mask_layer(mask, (10, 20, 30), fill=fill)) for fill in (True, False))
    assert filled.shape == (500, 500, 4)
    assert tuple(filled[200, 300]) == (10, 20, 30, 115)
    assert filled[50, 50, 3] == filled[450, 450, 3] == 0
    assert border[200, 300, 3] == 0
    for layer in (filled, border):
        assert tuple(layer[100, 300]) == (10, 20, 30, 255)
    # Nothing is drawn far from the mask.
    wide = np.zeros_like(mask)
    wide[95:305, 195:405] = True
    assert not (filled[..., 3] > 0)[~wide].any()


def test_a_box_without_a_mask_is_its_border():
    layer = opened(layers.box_layer((100.0, 50.0, 300.0, 200.0), (500, 500), (1, 2, 3)))
    assert layer[50, 200, 3] == 255
    assert layer[125, 200, 3] == 0


def test_attention_is_dense_where_it_is_high():
    values = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    layer = opened(layers.heat_layer(values))
    assert layer[0, 0, 3] == 30
    assert layer[-1, -1, 3] == 230
    flat = opened(layers.heat_layer(np.full((8, 8), 0.5, np.float32)))
    assert np.isfinite(flat).all()


def test_the_background_of_a_frame_is_faded():
    pixels = np.full((448, 448, 3), 100, dtype=np.uint8)
    objects = np.zeros((448, 448), dtype=bool)
    objects[100:200, 100:200] = True
    picture = layers.groups_picture(pixels, objects)
    assert tuple(picture[150, 150]) == (100, 100, 100)
    assert (picture[300, 300] > 180).all()
