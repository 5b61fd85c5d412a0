"""Label Studio tasks: a decoder of its own, by the published description of the format, and the importer's rules."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import numpy as np
import pytest
from found import masks, region, result
from hypothesis import example, given, settings

from flmm_detseg.inference.export.brush_rle import encode_brush
from flmm_detseg.inference.export.label_studio import LabelStudioTasks
from flmm_detseg.inference.regions import Region


def decoded(data: list[int], size: tuple[int, int]) -> np.ndarray:
    """Label Studio's pixels, uint8 ``[H, W, 4]``, read bit by bit."""
    bits = "".join(f"{byte:08b}" for byte in data)
    place = 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        assert place <= len(bits)
        return int(bits[place - count : place], 2)

    total = take(32)
    word = take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        same = take(1)
        length = take(sizes[take(2)]) + 1
        values += [take(word)] * length if same else [take(word) for _ in range(length)]
    assert len(values) == total
    assert set(bits[place:]) <= {"0"}
    assert len(bits) - place < 8
    return np.array(values, dtype=np.uint8).reshape(*size, 4)


@settings(max_examples=50, deadline=None)
@given(masks())
@example(np.ones((300, 250), dtype=bool))  # runs longer than a field holds
@example(np.zeros((128, 128), dtype=bool))  # exactly the longest run
def test_brushes_come_back(mask):
    pixels = decoded(encode_brush(mask), mask.shape)
    np.testing.assert_array_equal(pixels, np.where(mask, 255, 0)[..., None].repeat(4, axis=2))


def test_a_brush_by_hand():
    """One pixel: 4 values of 255 in one run, whose length fits 3 bits."""
    bits = (
        f"{4:032b}" + f"{7:05b}" + f"{2:04b}{3:04b}{7:04b}{15:04b}" + "1" + "00" + f"{3:03b}" + f"{255:08b}"
    )
    padded = bits + "0" * (-len(bits) % 8)
    assert encode_brush(np.ones((1, 1), dtype=bool)) == [
        int(padded[i : i + 8], 2) for i in range(0, len(padded), 8)
    ]


def test_a_task_is_what_the_importer_takes():
    mask = np.zeros((20, 40), dtype=bool)
    mask[5:15, 10:30] = True
    tasks = LabelStudioTasks("/data/local-files/?d=photos/")
    tasks.add(
        result(
            region(mask, 'a "red" star & <more>', 0.9),
            region(mask, "cat", 0.7, kind="detect"),
            Region("detect", "dog", 0.5, (0.0, 0.0, 4.0, 10.0)),
            region(np.zeros_like(mask), "nothing"),
        ),
        "a.png",
    )
    tasks.add(result(size=(20, 40)), "b.png")
    first, second = json.loads(json.dumps(tasks.content()))
    assert first["data"] == {"image": "/data/local-files/?d=photos/a.png"}
    assert second["predictions"] == [{"model_version": "flmm_detseg", "result": []}]
    (prediction,) = first["predictions"]
    assert prediction["score"] == pytest.approx(0.7)
    found = prediction["result"]
    assert len({entry["id"] for entry in found}) == len(found) == 4
    config = ElementTree.fromstring(tasks.labeling_config())
    tags = {tag.get("name"): tag for tag in config}
    assert tags["image"].get("value") == "$image"
    for entry in found:
        assert (entry["original_width"], entry["original_height"], entry["image_rotation"]) == (40, 20, 0)
        tag = tags[entry["from_name"]]
        assert (tag.tag.lower(), tag.get("toName")) == (entry["type"], entry["to_name"])
        assert entry["value"][entry["type"]][0] in [label.get("value") for label in tag]
    assert [entry["type"] for entry in found] == [
        "brushlabels", "rectanglelabels", "brushlabels", "rectanglelabels"
    ]  # fmt: skip
    np.testing.assert_array_equal(decoded(found[0]["value"]["rle"], (20, 40))[..., 3] > 0, mask)
    box = found[1]["value"]
    assert [box[key] for key in ("x", "y", "width", "height", "rotation")] == [25.0, 25.0, 50.0, 50.0, 0]
