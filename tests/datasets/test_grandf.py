"""GranD-f's forms of grounded captions."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from dataset_files import box_polygon
from reasoning_files import CAPTION, GROUNDED, bar, grounding, run_lengths, write_grandf

from flmm_detseg.cli import main
from flmm_detseg.datasets import GranDfDataset, SegAnswers
from flmm_detseg.errors import DataError


def check(sample) -> None:
    assert sample.text == CAPTION
    assert [sample.phrase_text(k) for k in range(2)] == ["A man", "a red kite"]
    assert np.array_equal(sample.masks, [bar(10) | bar(20), bar(1)])
    assert sample.task == "phrase"


def test_groundings_by_phrase(tmp_path):
    dataset = GranDfDataset(**write_grandf(tmp_path, [GROUNDED, {**GROUNDED, "groundings": {}}]))
    assert len(dataset) == 1
    assert dataset.dropped == {"no phrase": ["grandf/1"]}
    check(dataset[0])
    assert dataset.phrase_texts(0) == (dataset[0].image_id, ["A man", "a red kite"])
    answer = SegAnswers(dataset, form="captions")[0]
    assert answer.text == "A man [SEG] holds a red kite [SEG] near a man"
    assert np.array_equal(answer.masks, dataset[0].masks)


@pytest.mark.parametrize("span", [[1, 3], None, [[0, 5], [30, 35]], [0, 99]])
def test_a_phrase_is_found_where_its_positions_do_not_hold_it(tmp_path, span):
    groundings = {**GROUNDED["groundings"], "A man": grounding(span, 10, 20)}
    check(GranDfDataset(**write_grandf(tmp_path, [{**GROUNDED, "groundings": groundings}]))[0])


def test_sentences_of_refcocog(tmp_path):
    polygons = [box_polygon(5, row, 20, row + 3) for row in (10, 20)]
    refs = [
        {"sentence": "a red kite", "segmentation": run_lengths(bar(1))},
        {"sentence": "A man", "segmentation": polygons, "bbox": [1, 2, 3, 4]},
        {"sentence": "a zebra", "segmentation": polygons},
    ]
    dataset = GranDfDataset(
        **write_grandf(tmp_path, [{"img_file_name": "1.jpg", "caption": CAPTION, "refs": refs}])
    )
    check(dataset[0])
    assert dataset.dropped == {"phrase not in its caption": ["grandf/0/2"]}
    assert Path(dataset[0].image_id).name == "1.jpg"


def test_images_and_annotations_of_flickr(tmp_path):
    images = [
        {"id": k, "file_name": f"{k}.jpg", "caption": CAPTION, "height": 40, "width": 60} for k in (0, 1)
    ]
    annotations = [
        {
            "id": 1,
            "image_id": 1,
            "tokens_positive": [[12, 22]],
            "sam_mask": run_lengths(bar(1)),
            "bbox": [0, 0, 1, 1],
        },
        {"id": 2, "image_id": 1, "tokens_positive": [[0, 5]], "sam_mask": run_lengths(bar(10) | bar(20))},
        {
            "id": 3,
            "image_id": 1,
            "tokens_positive": [[0, 5]],
            "sam_mask": run_lengths(bar(3)),
            "ignore": True,
        },
    ]
    dataset = GranDfDataset(**write_grandf(tmp_path, {"images": images, "annotations": annotations}))
    assert len(dataset) == 1
    check(dataset[0])


def test_tagged_captions(tmp_path):
    tagged = "<p> A man </p> [SEG] holds <p>a  red kite</p>[SEG] near a man"
    masks = [run_lengths(bar(10) | bar(20)), run_lengths(bar(1))]
    dataset = GranDfDataset(
        **write_grandf(tmp_path, [{"file_name": "0.jpg", "caption": tagged, "masks": masks}])
    )
    check(dataset[0])
    answer = SegAnswers(dataset, form="captions")[0].text
    assert answer == "A man [SEG] holds a red kite [SEG] near a man"
    end = {"file_name": "0.jpg", "caption": "It is <p> a man </p> [SEG].", "masks": masks[:1]}
    sample = GranDfDataset(**write_grandf(tmp_path, [end]))[0]
    assert (sample.text, sample.phrase_text(0)) == ("It is a man.", "a man")


TAGGED = {"file_name": "0.jpg", "caption": "<p> A man </p> [SEG] holds", "masks": [run_lengths(bar(1))]}
BAD = [
    ({**TAGGED, "masks": []}, "0 `masks` for 1 tagged phrases", "malformed"),
    ({**TAGGED, "masks": {}}, "`masks` is {}, not a list", "malformed"),
    ({**TAGGED, "caption": "<p> A man </p> holds"}, "<p> that belongs to no", "bad tag"),
    ({**TAGGED, "caption": "A man [SEG] holds"}, r"\[SEG\] that belongs to no", "bad tag"),
    ({**TAGGED, "caption": "<p> a <p> man </p> [SEG]"}, "<p> that belongs to no", "bad tag"),
    ({**TAGGED, "caption": "<p> </p> [SEG] a man"}, "a tag without words", "bad tag"),
    (5, "expected an object", "malformed"),
    ({**GROUNDED, "caption": 5}, "`caption`", "bad text"),
    ({**GROUNDED, "caption": "a </s> b"}, "control word", "control word"),
    ({**GROUNDED, "file_name": "gone.jpg"}, "gone.jpg not found", "missing image"),
    ({"file_name": "0.jpg", "caption": CAPTION}, "none of `groundings`, `refs`, `masks`", "missing key"),
    ({**GROUNDED, "groundings": []}, "`groundings` is \\[\\]", "malformed"),
    ({**GROUNDED, "groundings": {"A man": {}}}, "no `rle_masks`", "missing key"),
    (
        {**GROUNDED, "groundings": {"a cat": grounding([0, 5], 1)}},
        "'a cat' is neither at",
        "span does not match",
    ),
    ({**GROUNDED, "groundings": {"A man": grounding([0, 5])}}, "no polygon", "bad mask"),
    (
        {**GROUNDED, "groundings": {"A man": {"rle_masks": [{"size": [1, 2, 3], "counts": ""}]}}},
        "RLE `size`",
        "bad mask",
    ),
    (
        {**GROUNDED, "groundings": {"A man": {"rle_masks": [{"size": [9, 9], "counts": [81]}]}}},
        "mask size",
        "bad mask",
    ),
    (
        {**GROUNDED, "groundings": {"A man": {"rle_masks": [{"size": [40, 60], "counts": [2400]}]}}},
        "empty",
        "empty mask",
    ),
    (
        {"img_file_name": "0.jpg", "caption": CAPTION, "refs": [{"sentence": "A man"}]},
        "`segmentation` is missing",
        "malformed",
    ),
]


@pytest.mark.parametrize(("entry", "match", "kind"), BAD)
def test_a_faulty_caption_is_named_or_skipped_and_counted(tmp_path, entry, match, kind):
    files = write_grandf(tmp_path, [GROUNDED, entry])
    with pytest.raises(DataError, match=match):
        list(GranDfDataset(**files))
    dataset = GranDfDataset(**files, policy="skip", verify_images=True)
    assert len(dataset) == 1
    assert dataset.report()["skipped"] == {kind: 1}


def test_the_command_checks_it(tmp_path, monkeypatch, capsys):
    files = write_grandf(tmp_path, [GROUNDED, BAD[9][0]])
    monkeypatch.setattr(sys, "argv", ["flmm-detseg", "data", "check", "grandf", *files.values()])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])["data_sets"][files["file"]]
    assert (figures["records"], figures["phrases"], figures["problems"]) == (1, 2, 1)
    (tmp_path / "gcg.json").write_text('"a"')
    with pytest.raises(DataError, match="expected a list of captions, got str"):
        GranDfDataset(**files)
