from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from flmm_detseg.datasets.masks import decode_segmentation, read_mask_png, read_panoptic_ids
from flmm_detseg.datasets.policy import RecordError
from flmm_detseg.utils.values import FieldError

SIZE = (30, 40)


def test_polygons_that_leave_the_image_are_cut_as_pycocotools_cuts_them():
    rng = np.random.default_rng(0)
    for _ in range(50):
        polygons = [(rng.random(2 * n) * 120 - 40).tolist() for n in rng.integers(3, 12, size=2)]
        expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *SIZE))).astype(bool)
        assert np.array_equal(decode_segmentation(polygons, SIZE), expected)


FAR = {
    "one point far outside": [1, 1, 2e8, 2e8, 5, 20],
    "the whole polygon": [1e9, 1e9, 1e9 + 5, 1e9, 1e9, 1e9 + 5],
    "on the other side": [-1e12, 0, 0, 0, 0, 5],
    "largest float": [0, 0, 1e308, 1e308, 5, 1e308],
    "back and forth": [0, 0, 9e5, 9e5] * 10,
    "400 digits": [0, 0, 10**400, 0, 5, 5],
    "infinite": [0, 0, float("inf"), 0, 5, 5],
    "not a number": [0, 0, float("nan"), 0, 5, 5],
    "boolean": [True, 0, 9, 0, 9, 9],
    "text": ["1", 0, 9, 0, 9, 9],
    "null": [None, 0, 9, 0, 9, 9],
}


@pytest.mark.case("data/01_polygon_far_outside_kills_process")
@pytest.mark.case("security/polygon_segfault")
@pytest.mark.parametrize("polygon", FAR.values(), ids=list(FAR))
def test_polygons_that_native_code_does_not_survive(polygon):
    with pytest.raises(FieldError, match="polygon|outline") as caught:
        decode_segmentation([polygon], SIZE)
    assert caught.value.kind == "bad mask"


@pytest.mark.long
@pytest.mark.case("security/polygon_segfault")
def test_the_longest_polygon_that_is_drawn_takes_little_memory():
    """In a process of its own, whose memory is bounded: malloc's failure would end it with a signal."""
    program = """
import resource
from flmm_detseg.datasets.masks import decode_segmentation
with open("/proc/self/statm") as file:
    now = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 500 * 2**20,) * 2)
print(decode_segmentation([[0, 0, 600_000, 0, 600_000, 600_000]], (300, 400)).sum())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1000


RLES = {
    "size is a text": dict(size="40", counts=[1200]),
    "size is a number": dict(size=5, counts=[1200]),
    "size holds texts": dict(size=["30", "40"], counts=[1200]),
    "size is too long": dict(size=[30, 40, 1], counts=[1200]),
    "counts are booleans": dict(size=[30, 40], counts=[True, 1199]),
    "count too large": dict(size=[30, 40], counts=[10**30, 1200 - 10**30]),
    "number without end": dict(size=[30, 40], counts="o" * 200_000 + "0"),
    "other characters": dict(size=[30, 40], counts="é\ud800"),
    "null": dict(size=[30, 40], counts=None),
}


@pytest.mark.case("security/readers")
@pytest.mark.parametrize("rle", RLES.values(), ids=list(RLES))
def test_run_lengths_that_are_none(rle):
    with pytest.raises(FieldError, match="RLE"):
        decode_segmentation(rle, SIZE)


def shape() -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[5:15, 7:17] = True
    return mask


def planes(colour: np.ndarray, alpha: np.ndarray, mode: str) -> Image.Image:
    grey = Image.fromarray(colour.astype(np.uint8))
    bands = [grey] * (len(mode) - 1) + [Image.fromarray(alpha.astype(np.uint8))]
    return Image.merge(mode, bands)


@pytest.mark.case("data/04_mask_png_with_alpha_is_whole_image")
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_planes_of_mask_pictures(tmp_path, mode):
    mask, full = shape() * 255, np.full(SIZE, 255)
    pictures = {
        "colour": planes(mask, full, mode),
        "colour, glassy": planes(mask, full // 2, mode),
        "both": planes(mask, mask, mode),
        "white, alpha": planes(full, mask, mode),
        "black, alpha": planes(full * 0, mask, mode),
    }
    for name, picture in pictures.items():
        picture.save(tmp_path / "m.png")
        assert np.array_equal(read_mask_png(tmp_path / "m.png"), shape()), name
    planes(mask, np.roll(mask, 4), mode).save(tmp_path / "m.png")
    with pytest.raises(RecordError, match="one shape in its colours and another one in its alpha"):
        read_mask_png(tmp_path / "m.png")


@pytest.mark.case("data/04_mask_png_with_alpha_is_whole_image")
def test_modes_of_mask_pictures(tmp_path):
    """Known ones give the shape; in the others "not 0" means something else, so they are refused."""
    grey = Image.fromarray(shape().astype(np.uint8) * 255)
    for mode in ("1", "L", "I", "F", "RGB"):
        suffix = "tif" if mode in ("I", "F") else "png"
        grey.convert(mode).save(tmp_path / f"{mode}.{suffix}")
        assert np.array_equal(read_mask_png(tmp_path / f"{mode}.{suffix}"), shape()), mode
    Image.fromarray(shape().astype(np.uint16)).save(tmp_path / "16.png")
    assert np.array_equal(read_mask_png(tmp_path / "16.png"), shape())
    for mode in ("CMYK", "YCbCr", "LAB"):
        Image.new(mode, SIZE[::-1]).save(tmp_path / f"{mode}.tif")
        with pytest.raises(RecordError, match=f"mask has pixels of Pillow's mode {mode}"):
            read_mask_png(tmp_path / f"{mode}.tif")


@pytest.mark.case("data/21_jpeg_masks")
@pytest.mark.parametrize(
    ("name", "options"),
    [("m.jpg", {}), ("m.png", {"format": "JPEG"}), ("m.webp", {}), ("m.tif", {"compression": "jpeg"})],
)
def test_lossy_pictures_are_no_labels(tmp_path, name, options):
    Image.fromarray(shape().astype(np.uint8) * 255).convert("RGB").save(tmp_path / name, **options)
    for read in (read_mask_png, read_panoptic_ids):
        with pytest.raises(RecordError, match="changes pixel values.* Save it as PNG") as caught:
            read(tmp_path / name)
        assert caught.value.problem.kind == "lossy labels"


def test_panoptic_maps(tmp_path):
    ids = np.zeros(SIZE, dtype=np.int32)
    ids[3:9, 4:] = 70_001
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    picture = Image.fromarray(colours)
    for mode in ("RGB", "RGBA", "P"):
        picture.convert(mode, palette=Image.Palette.ADAPTIVE).save(tmp_path / "p.png")
        assert np.array_equal(read_panoptic_ids(tmp_path / "p.png", SIZE), ids), mode
    picture.convert("L").save(tmp_path / "p.png")
    with pytest.raises(RecordError, match="panoptic map has pixels of Pillow's mode L"):
        read_panoptic_ids(tmp_path / "p.png")


@pytest.mark.case("data/23_pictures_with_a_huge_header")
def test_pictures_of_labels_larger_than_their_image_are_not_decoded(tmp_path, monkeypatch):
    Image.new("1", (9000, 9000)).save(tmp_path / "m.png")

    def no_decoding(self: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", no_decoding)
    with pytest.raises(RecordError, match="mask is 9000 x 9000, its image 30 x 40"):
        read_mask_png(tmp_path / "m.png", SIZE)
    monkeypatch.setenv("FLMM_DETSEG_MAX_PIXELS", "1000000")
    with pytest.raises(RecordError, match="mask is too large: 9000 x 9000.*FLMM_DETSEG_MAX_PIXELS"):
        read_mask_png(tmp_path / "m.png")
