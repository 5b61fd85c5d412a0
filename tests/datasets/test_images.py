from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from flmm_detseg.datasets.images import load_image
from flmm_detseg.datasets.masks import decode_segmentation, read_mask_png
from flmm_detseg.errors import DataError
from flmm_detseg.utils.rle import encode_rle


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_every_8_bit_mode_becomes_rgb(tmp_path, mode):
    colour = Image.new("RGB", (7, 5), (200, 200, 200)).convert(mode)
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    colour.save(path)
    image = load_image(path)
    assert image.shape == (5, 7, 3)
    assert image.dtype == np.uint8
    assert image.mean() > 150


def test_exif_orientation_is_applied(tmp_path):
    pixels = np.zeros((10, 20, 3), np.uint8)
    pixels[:, :10] = 255
    picture = Image.fromarray(pixels)
    exif = picture.getexif()
    exif[0x0112] = 6  # to be shown rotated by 90 degrees clockwise
    picture.save(tmp_path / "rotated.png", exif=exif)
    image = load_image(tmp_path / "rotated.png")
    assert image.shape == (20, 10, 3)
    assert image[:10].mean() > 250
    assert image[10:].mean() < 5


def test_16_bit_is_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match="deep.png: record 5: image mode I;16 has more than 8 bits"):
        load_image(tmp_path / "deep.png", "record 5")


def test_missing_and_broken(tmp_path):
    with pytest.raises(DataError, match="gone.jpg: .*image not found"):
        load_image(tmp_path / "gone.jpg", "r")
    (tmp_path / "text.jpg").write_text("hello")
    with pytest.raises(DataError, match="text.jpg: r: image cannot be decoded"):
        load_image(tmp_path / "text.jpg", "r")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(
        tmp_path / "cut.jpg"
    )
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:600])
    with pytest.raises(DataError, match="cut.jpg: r: image cannot be decoded"):
        load_image(tmp_path / "cut.jpg", "r")


def test_rle_round_trip():
    """Random masks, and long runs, whose differences are negative and take several characters."""
    rng = np.random.default_rng(1)
    for fill in (0.5, 0.02, 0.98, 0.0, 1.0):
        mask = rng.random((131, 170)) < fill
        mask[20:90, 30:150] |= fill > 0.01
        assert np.array_equal(decode_segmentation(encode_rle(mask), (131, 170)), mask)


def test_mask_pictures(tmp_path):
    mask = np.zeros((6, 8), bool)
    mask[2:4, 3:5] = True
    palette = Image.fromarray(mask.astype(np.uint8))
    palette.putpalette([255, 255, 255, 0, 0, 0])  # background is white, the object black
    palette.save(tmp_path / "palette.png")
    rgba = np.zeros((6, 8, 4), np.uint8)
    rgba[..., 3] = 255
    rgba[mask, 1] = 9
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    Image.fromarray(mask).save(tmp_path / "bits.png")
    for name in ("palette", "rgba", "bits"):
        assert np.array_equal(read_mask_png(tmp_path / f"{name}.png"), mask)
