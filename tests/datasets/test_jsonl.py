from __future__ import annotations

import numpy as np
import pytest
from dataset_files import SIZE, box_polygon, own_line, write_image, write_jsonl
from PIL import Image

from flmm_detseg.datasets import JSONLDataset
from flmm_detseg.errors import DataError
from flmm_detseg.utils.rle import encode_rle

BOX = {"polygon": [box_polygon(2, 3, 20, 30)]}


def test_all_mask_forms_and_phrase_forms(tmp_path):
    mask = np.zeros(SIZE, dtype=bool)
    mask[3:30, 2:20] = True
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    counts = encode_rle(mask)
    phrases = [
        {"span": [0, 5], "mask": BOX},
        {"text": "a dog", "mask": {"rle": counts}, "box": [2, 3, 20, 30]},
        {"spans": [[0, 1], [6, 10]], "text": "a near", "mask": {"png": "mask.png"}},
    ]
    path = write_jsonl(tmp_path, [own_line(phrases=phrases, prompt="What is this?", id="first")])
    sample = JSONLDataset(str(path))[0]
    assert sample.record_id == "jsonl/first"
    assert sample.prompt == "What is this?"
    assert [sample.phrase_text(k) for k in range(3)] == ["a cat", "a dog", "a near"]
    assert sample.meta["boxes_xyxy"] == [None, [2, 3, 20, 30], None]
    for decoded in sample.masks:
        assert np.array_equal(decoded, mask)


def test_image_folder_and_defaults(tmp_path):
    write_image(tmp_path / "elsewhere" / "picture.png", 9)
    (tmp_path / "lists").mkdir()
    path = write_jsonl(tmp_path / "lists", [own_line(), "", own_line()])
    dataset = JSONLDataset(str(path), image_dir=str(tmp_path / "elsewhere"), prompt="Describe it.")
    assert [dataset[i].record_id for i in range(2)] == ["jsonl/line-1", "jsonl/line-3"]
    assert dataset[0].prompt == "Describe it."
    assert dataset[0].image_id == str(tmp_path / "elsewhere" / "picture.png")


def phrase(**changes):
    return own_line(phrases=[{"span": [0, 5], "mask": BOX, **changes}])


def test_absent_objects_only_when_allowed(tmp_path):
    path = write_jsonl(tmp_path, [phrase(mask=None)])
    with pytest.raises(DataError, match="line 1: phrase 0: `mask` must have one of rle, polygon, png"):
        JSONLDataset(str(path))
    sample = JSONLDataset(str(path), allow_empty=True)[0]
    assert sample.masks.shape == (1, *SIZE)
    assert not sample.masks.any()


CASES = [
    (str(own_line())[:40].replace("'", '"'), "not a complete JSON object", "broken JSON"),
    ("[1, 2]", "expected a JSON object, got list", "broken JSON"),
    (own_line(picture="x"), "the line has an unknown key `picture`", "unknown key"),
    (own_line(caption=None), "`caption` is missing or not a str", "missing key"),
    (own_line(image="gone.png"), "gone.png not found", "missing image"),
    (phrase(span=[4, 99]), r"span \[4, 99\] is empty, unordered or outside .*0..16", "span does not match"),
    (phrase(span=[5, 5]), "is empty, unordered or outside", "span does not match"),
    (phrase(span=[5, 6]), "is empty, unordered or outside", "span does not match"),
    (phrase(spans=[[6, 10], [0, 5]]), "is empty, unordered or outside", "span does not match"),
    (phrase(text="a dog"), "its span holds 'a cat', its text says 'a dog'", "span does not match"),
    (own_line(phrases=[{"text": "a horse", "mask": BOX}]), "'a horse' occurs 0 times", "span does not match"),
    (own_line(phrases=[{"text": "a", "mask": BOX}]), "'a' occurs 4 times", "span does not match"),
    (own_line(phrases=[{"text": "nea", "mask": BOX}]), "'nea' occurs only inside of a word", "span does not match"),
    (own_line(caption="एक कमी", phrases=[{"text": "कम", "mask": BOX}]), "only inside of a word", "span does not match"),
    (own_line(phrases=[{"mask": BOX}]), "needs `span`, `spans` or `text`", "missing key"),
    (phrase(mask={"polygon": []}), "phrase 0: no polygon", "bad mask"),
    (phrase(mask={"polygon": [[0, 0, 1, 1]]}), "at least 3 points", "bad mask"),
    (phrase(mask={"png": "nomask.png"}), "nomask.png not found", "bad mask"),
    (phrase(mask={"picture": 1}), "`mask` must have one of", "bad mask"),
    (phrase(box=[5, 5, 1, 9]), "`box` .* is not", "bad box"),
    (phrase(colour="red"), "phrase 0 has an unknown key `colour`", "unknown key"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "match", "kind"), CASES, ids=range(len(CASES)))
def test_bad_lines_raise_or_are_skipped_and_listed(tmp_path, line, match, kind):
    path = write_jsonl(tmp_path, [own_line(id="good"), line, own_line(id="also good")])
    with pytest.raises(DataError, match=f"own.jsonl: line 2: .*{match}"):
        JSONLDataset(str(path))
    dataset = JSONLDataset(str(path), policy="skip")
    assert [(problem.record, problem.kind) for problem in dataset.problems] == [("line 2", kind)]
    assert [dataset[i].record_id for i in range(len(dataset))] == ["jsonl/good", "jsonl/also good"]


def test_repeated_id(tmp_path):
    path = write_jsonl(tmp_path, [own_line(id="a"), own_line(id="a")])
    with pytest.raises(DataError, match="line 2: id 'jsonl/a' was used in line 1"):
        JSONLDataset(str(path))


@pytest.mark.parametrize(
    ("line", "match"),
    [
        (phrase(mask={"rle": {"size": [3, 4], "counts": [12]}}), r"mask size \[3, 4\] is not the image size"),
        (phrase(mask={"rle": {"size": list(SIZE), "counts": [5]}}), "RLE counts sum to 5, not 2400"),
        (phrase(mask={"rle": {"size": list(SIZE), "counts": "8"}}), "RLE counts sum to 8, not 2400"),
        (phrase(mask={"rle": {"size": list(SIZE), "counts": "P"}}), "RLE counts are cut off"),
        (phrase(mask={"rle": {"size": list(SIZE), "counts": "é"}}), "mask cannot be decoded"),
        (phrase(mask={"polygon": [box_polygon(90, 90, 99, 99)]}), "its mask is empty"),
        (phrase(mask={"png": "small.png"}), "phrase 0: mask is 4 x 5, its image 40 x 60"),
        (phrase(box=[0, 0, 61, 10]), "`box` .* leaves the image"),
    ],
)  # fmt: skip
def test_faults_seen_on_reading(tmp_path, line, match):
    Image.fromarray(np.ones((4, 5), np.uint8)).save(tmp_path / "small.png")
    path = write_jsonl(tmp_path, [line, own_line(id="good")])
    dataset = JSONLDataset(str(path), policy="skip")
    with pytest.raises(DataError, match=f"line 1: .*{match}"):
        dataset[0]
    verified = JSONLDataset(str(path), policy="skip", verify_images=True)
    assert [problem.record for problem in verified.problems] == ["line 1"]
    assert verified[0].record_id == "jsonl/good"
