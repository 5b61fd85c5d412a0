"""Panoptic maps: every pixel has the segment that wins it, by a rule that is stated."""

from __future__ import annotations

import json

import numpy as np
from found import masks, region, result
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flmm_detseg.datasets.masks import read_panoptic_ids
from flmm_detseg.inference.export.panoptic import PanopticFile
from flmm_detseg.inference.regions import Region

SIZE = (9, 11)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(masks(size=SIZE), st.sampled_from([0.2, 0.5, 0.9])), max_size=5))
def test_the_higher_score_wins(found):
    regions = [region(mask, f"label {index % 2}", score) for index, (mask, score) in enumerate(found)]
    file = PanopticFile()
    rgb = file.add(result(*regions, size=SIZE), "a.jpg", "a.png").astype(np.int64)
    ids = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
    content = json.loads(json.dumps(file.content()))
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    segments = {segment["id"]: segment for segment in content["annotations"][0]["segments_info"]}
    assert set(np.unique(ids)) - {0} == set(segments)
    # Pixel by pixel, by the rule's words.
    owners = {}
    lost = 0
    for row in range(SIZE[0]):
        for column in range(SIZE[1]):
            here = [index for index, (mask, _) in enumerate(found) if mask[row, column]]
            lost += max(0, len(here) - 1)
            if not here:
                assert ids[row, column] == 0
                continue
            best = max(here, key=lambda index: (found[index][1], -index))
            assert owners.setdefault(int(ids[row, column]), best) == best
            assert names[segments[int(ids[row, column])]["category_id"]] == f"label {best % 2}"
    assert len(set(owners.values())) == len(owners) == len(segments) == file.counts.segments
    assert file.counts.overlap_pixels == lost
    for number, segment in segments.items():
        rows, columns = np.nonzero(ids == number)
        assert segment["area"] == len(rows)
        x, y, width, height = segment["bbox"]
        assert (x, y, x + width, y + height) == (
            columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        )  # fmt: skip
    drawn = sum(bool(mask.any()) for mask, _ in found)
    assert file.counts.covered == drawn - len(segments)
    assert file.counts.empty == len(found) - drawn


def test_the_map_is_read_as_coco_panoptic(tmp_path):
    mask = np.zeros(SIZE, dtype=bool)
    mask[2:5, 3:9] = True
    many = [region(np.roll(mask, shift, axis=0), "a", 0.5 + shift / 100) for shift in range(4)]
    file = PanopticFile()
    Image.fromarray(
        file.add(result(*many, Region("detect", "cat", 0.9, (0.0, 0.0, 3.0, 3.0))), "a.jpg", "a.png")
    ).save(tmp_path / "a.png")
    ids = read_panoptic_ids(tmp_path / "a.png", SIZE)
    (annotation,) = file.content()["annotations"]
    assert annotation["file_name"] == "a.png"
    assert {int(value) for value in np.unique(ids)} - {0} == {s["id"] for s in annotation["segments_info"]}
    assert file.counts.boxes == 1
    assert file.counts.overlap_pixels == 3 * 2 * 6
