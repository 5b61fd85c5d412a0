from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from dataset_files import SIZE, write_image
from PIL import Image

from flmm_detseg.datasets import SemanticMapsDataset
from flmm_detseg.datasets.class_names import named_classes
from flmm_detseg.datasets.semantic_maps import semantic_classes
from flmm_detseg.datasets.tinyworld import KINDS, STUFF, make_scene
from flmm_detseg.datasets.tinyworld.formats import label_map
from flmm_detseg.datasets.tinyworld.world import WorldSpec, write_world
from flmm_detseg.errors import ConfigError, DataError

NAMES = ["road", "sky", "tree"]


def write(root: Path, values: np.ndarray, name: str = "a", mode: str = "L") -> dict[str, str]:
    write_image(root / "images" / f"{name}.jpg", 1)
    (root / "maps").mkdir(exist_ok=True)
    Image.fromarray(values).convert(mode).save(root / "maps" / f"{name}.png")
    return {"label_dir": str(root / "maps"), "image_dir": str(root / "images")}


def ramp(*values: int, dtype: type = np.uint8) -> np.ndarray:
    out = np.zeros(SIZE, dtype=dtype)
    for row, value in enumerate(values):
        out[row] = value
    return out


def test_tinyworld_maps_are_the_scene(tmp_path):
    write_world(tmp_path, WorldSpec(20, 2), progress=False)
    dataset = SemanticMapsDataset(
        label_dir=str(tmp_path / "ade/annotations/training"),
        image_dir=str(tmp_path / "coco/train2017"),
        classes="tinyworld",
        reduce_zero_label=True,
    )
    assert dataset.classes == (*KINDS, *STUFF)
    for index in range(3):
        sample, scene = dataset[index], make_scene(2, index, "train")
        assert sample.task == "segmentation"
        assert np.array_equal(sample.image, scene.image)
        values = label_map(scene).astype(int)
        assert sample.dense.semantic.dtype == np.uint8
        assert np.array_equal(sample.dense.semantic, np.where(values == 0, 255, values - 1))
        for region in scene.stuff:  # where no object stands before it
            mask = region.mask & (values > len(KINDS))
            assert {dataset.classes[value] for value in sample.dense.semantic[mask]} <= {region.name}


def test_values_with_and_without_a_zero_label(tmp_path):
    files = write(tmp_path, ramp(1, 2, 3, 255))
    reduced = SemanticMapsDataset(**files, classes=NAMES, reduce_zero_label=True)[0].dense.semantic
    assert reduced[:5, 0].tolist() == [0, 1, 2, 255, 255]
    files = write(tmp_path, ramp(1, 2, 255))
    plain = SemanticMapsDataset(**files, classes=NAMES)[0].dense.semantic
    assert plain[:4, 0].tolist() == [1, 2, 255, 0]


def test_palette_and_16_bit_maps(tmp_path):
    write(tmp_path, ramp(1, 2), name="p", mode="P")
    files = write(tmp_path, ramp(1, 2, dtype=np.uint16), name="q", mode="I;16")
    for sample in SemanticMapsDataset(**files, classes=NAMES):
        assert sample.dense.semantic[:3, 0].tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("values", "reduce", "match"),
    [
        (ramp(1, 3, 7), False, "values 3, 7; 3 classes have 0..2"),
        (ramp(1, 3, 4), True, "values 4; 3 classes have 1..3"),
        (ramp(1, 300, dtype=np.uint16), False, "values 300"),
        (np.zeros((7, 9), dtype=np.uint8), False, r"label map is 7 x 9, its image 40 x 60 \(H x W\)"),
        (
            np.zeros((*SIZE, 3), dtype=np.uint8),
            False,
            "label map has pixels of Pillow's mode RGB, which are no labels",
        ),
    ],
)
def test_unusable_maps_name_file_and_remedy(tmp_path, values, reduce, match):
    modes = {np.dtype(np.uint8): "L", np.dtype(np.uint16): "I;16"}
    mode = "RGB" if values.ndim == 3 else modes[values.dtype]
    files = write(tmp_path, values, mode=mode)
    write(tmp_path, ramp(1), name="good")
    arguments = dict(**files, classes=NAMES, reduce_zero_label=reduce)
    with pytest.raises(DataError, match=match) as caught:
        SemanticMapsDataset(**arguments)[0]
    assert "a.png" in str(caught.value)
    usable = SemanticMapsDataset(**arguments, policy="skip", verify_images=True)
    assert [record.record_id for record in usable.records] == ["semantic/good"]
    assert len(usable.problems) == 1


def test_missing_images_broken_maps_and_empty_folders(tmp_path):
    files = write(tmp_path, ramp(1))
    (tmp_path / "maps/lonely.png").write_bytes((tmp_path / "maps/a.png").read_bytes())
    with pytest.raises(DataError, match="lonely.png: no image lonely.jpg"):
        SemanticMapsDataset(**files, classes=NAMES)
    assert len(SemanticMapsDataset(**files, classes=NAMES, policy="skip")) == 1
    (tmp_path / "maps/lonely.png").unlink()
    (tmp_path / "maps/a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="label map cannot be decoded"):
        SemanticMapsDataset(**files, classes=NAMES)[0]
    with pytest.raises(DataError, match=r"no label map \*.tif in it"):
        SemanticMapsDataset(**files, classes=NAMES, label_suffix=".tif")


def test_suffixes_and_subfolders(tmp_path):
    write_image(tmp_path / "images/city/b.png", 1)
    (tmp_path / "maps/city").mkdir(parents=True)
    Image.fromarray(ramp(2)).save(tmp_path / "maps/city/b_labels.png")
    dataset = SemanticMapsDataset(
        str(tmp_path / "maps"), str(tmp_path / "images"), NAMES, label_suffix="_labels.png"
    )
    assert dataset.record_id(0) == "semantic/city/b"
    assert dataset[0].dense.semantic[0, 0] == 2
    assert dataset.metainfo["semantic_classes"] == tuple(NAMES)


def test_class_names():
    assert len(semantic_classes("ade20k")) == 150
    assert semantic_classes("coco") == named_classes("coco")  # one resolver for heads and data
    assert semantic_classes("tinyworld") == named_classes("tinyworld")
    for wrong in ("nonsense", [], ["a", "a"], [str(n) for n in range(255)]):
        with pytest.raises(ConfigError, match="`classes`"):
            semantic_classes(wrong)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_maps_of_few_bits_keep_their_class_numbers(tmp_path, bits):
    """Tools that shrink PNGs store few greys in few bits, which Pillow spreads over 0 to 255."""
    largest = 2**bits - 1
    values = ramp(0, largest, 1)
    files = write(tmp_path, values)
    rows = np.unpackbits(values[..., None], axis=2)[..., 8 - bits :].reshape(len(values), -1)
    data = b"".join(b"\0" + row.tobytes() for row in np.packbits(rows, axis=1))
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b""))
    (tmp_path / "maps" / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
            for kind, body in chunks
        )
    )
    dataset = SemanticMapsDataset(**files, classes=[f"class {number}" for number in range(16)])
    assert np.array_equal(dataset[0].dense.semantic, values)
