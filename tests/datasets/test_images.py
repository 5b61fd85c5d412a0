from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flmm_detseg.datasets.images import image_size, load_image, read_image
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


def upright() -> np.ndarray:
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[:10] = (250, 20, 20)
    return pixels


def exif_block(orientation: int, *entries: bytes) -> bytes:
    """A TIFF header with one directory: the orientation, then entries as they are."""
    rows = [struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0), *entries]
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(rows)) + b"".join(rows) + b"\0" * 24


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_size_from_the_header_is_that_of_the_pixels(tmp_path, kind):
    path = tmp_path / "picture.jpg"  # the name may say another format
    for number in range(1, 10):
        exif = Image.Exif()
        exif[0x0112] = number
        Image.fromarray(upright()).save(path, format=kind, exif=exif)
        assert image_size(path) == load_image(path).shape[:2]
    assert load_image(path).shape == (30, 40, 3)


BROKEN_EXIF = {
    # signed rational (-1, 0) as XResolution, after the directory and its blanks: exif_transpose cannot write it back
    "rational": exif_block(6, struct.pack("<HHII", 0x011A, 10, 1, 8 + 2 + 24 + 24))
    + struct.pack("<ii", -1, 0),
    "no TIFF header": b"Exif\0\0XX*\0\x08\0\0\0",
    "cut off": b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
    "orientation 99": exif_block(99),
    "empty": b"Exif\0\0",
}


def with_exif(path: Path, block: bytes) -> None:
    """Writes a picture; Pillow stores such a block without reading it."""
    Image.fromarray(upright()).save(path, exif=block)


def test_the_broken_rational_is_one_that_pillow_cannot_write(tmp_path):
    """Else the test below would pass with the fault in place."""
    with_exif(tmp_path / "a.jpg", BROKEN_EXIF["rational"])
    with Image.open(tmp_path / "a.jpg") as picture, pytest.raises(struct.error):
        picture.getexif().tobytes()


@pytest.mark.case("data/06_one_exif_tag_stops_everything")
@pytest.mark.case("model/exif_pil")
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("kind", list(BROKEN_EXIF))
def test_unreadable_exif_is_no_orientation(tmp_path, kind, suffix):
    path = tmp_path / f"a.{suffix}"
    if suffix == "tif":  # its header is the file's own
        Image.fromarray(upright()).save(path)
    else:
        with_exif(path, BROKEN_EXIF[kind])
    expected = (40, 30, 3) if kind == "rational" and suffix != "tif" else (30, 40, 3)
    roads = (str(path), path, Image.open(path), Image.open(path).copy())
    for road in roads:
        assert read_image(road, "r").shape == expected
    assert load_image(path).shape == expected
    assert image_size(path) == expected[:2]


@pytest.mark.case("data/14_pil_16_bit_picture_turns_white")
@pytest.mark.case("model/deep_pil")
def test_one_rule_for_paths_and_pil_images(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64)
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(ramp.astype(np.int32)).save(tmp_path / "int.tif")
    for name in ("deep.png", "float.tif", "int.tif"):
        messages = []
        for road in (tmp_path / name, Image.open(tmp_path / name)):
            with pytest.raises(DataError, match="image 3: image mode .* has more than 8 bits") as caught:
                read_image(road, "image 3")
            messages.append(str(caught.value))
        assert messages[0] == messages[1]
    with pytest.raises(DataError, match="PIL image: x: image mode F has more"):
        read_image(Image.fromarray(np.linspace(0, 1, 100, dtype=np.float32).reshape(10, 10)), "x")
    for value in (None, 5, [[1]], b"x", ramp, ramp.astype(np.uint8)):
        with pytest.raises(DataError, match="x: an (image is a path|RGB uint8 array)"):
            read_image(value, "x")


@pytest.mark.case("model/exif_pil")
def test_whatever_a_decoder_raises_names_the_record(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:1500])
    for road in (tmp_path / "cut.jpg", Image.open(tmp_path / "cut.jpg")):
        with pytest.raises(DataError, match="cut.jpg: image 3: image cannot be decoded"):
            read_image(road, "image 3")
    closed = Image.open(tmp_path / "cut.jpg")
    closed.close()
    with pytest.raises(DataError, match="image 3: image cannot be decoded"):
        read_image(closed, "image 3")
    for name in ("a\0.png", "a" * 5000, "."):
        with pytest.raises(DataError, match="image (cannot be decoded|not found)"):
            load_image(tmp_path / name, "r")

    class NewFault(Exception):
        pass

    def load(self: Image.Image) -> None:
        raise NewFault("of a later Pillow")

    Image.fromarray(noise).save(tmp_path / "good.png")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    for read in (load_image, read_mask_png):
        with pytest.raises(DataError, match="cannot be decoded .NewFault: of a later Pillow"):
            read(tmp_path / "good.png")


@pytest.mark.case("security/decompression")
def test_pictures_over_the_limit_of_pixels_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    Image.new("1", (13300, 13300)).save(tmp_path / "large.png")
    Image.new("L", (30, 40)).save(tmp_path / "small.png")
    for road in (tmp_path / "large.png", Image.open(tmp_path / "large.png")):
        with pytest.raises(DataError, match="13300 x 13300.*120000000 pixels.*FLMM_DETSEG_MAX_PIXELS"):
            read_image(road, "r")
    monkeypatch.setenv("FLMM_DETSEG_MAX_PIXELS", "1199")
    for road in (tmp_path / "small.png", Image.open(tmp_path / "small.png"), np.zeros((40, 30, 3), np.uint8)):
        with pytest.raises(DataError, match=r"40 x 30 \(H x W\) are more than 1199 pixels"):
            read_image(road, "r")


@pytest.mark.case("security/readers")
def test_pictures_that_are_programs_or_empty(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    with pytest.raises(DataError, match="image is an EPS file, which is a program"):
        load_image(tmp_path / "a.eps")
    with pytest.raises(DataError, match="image has no pixel"):
        read_image(Image.new("RGB", (0, 5)), "r")
