"""gRefCOCO's expressions for one object, several and none; refCLEF through the reader of RefCOCO."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from dataset_files import SIZE, box_polygon, edit_refs, write_image, write_refcoco
from pycocotools import mask as coco_mask
from reasoning_files import REFERENCES, reference, write_grefcoco

from flmm_detseg.cli import main
from flmm_detseg.datasets import GRefCOCODataset, RefCOCODataset
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.language.mask_wording import NOTHING_THERE, PHRASE_QUESTIONS


def test_one_several_and_none(tmp_path):
    files = write_grefcoco(tmp_path)
    one, both, none = GRefCOCODataset(**files, split="val", sentences="first")
    plain = RefCOCODataset(
        **{**files, "refs_file": str(tmp_path / "refs(unc).p")}, split="val", sentences="first"
    )
    masks = plain[0].masks
    assert (one.text, one.prompt) == ("this is it : [SEG] .", PHRASE_QUESTIONS[0].format("the left one"))
    assert np.array_equal(one.masks, masks[:1])
    assert np.array_equal(both.masks, [masks[0] | masks[1]])
    assert both.meta["ann_ids"] == [1001, 1000]
    assert (none.text, none.masks.shape, none.phrases) == (NOTHING_THERE, (0, *SIZE), ())
    assert none.meta["absent"] == "expression"
    each = GRefCOCODataset(**files, split="val", sentences="first", targets="each")[1]
    assert each.text == "this is it : [SEG] and [SEG] ."
    assert np.array_equal(each.masks, masks[[1, 0]])
    assert {sample.task for sample in (one, both, none)} == {"reasoning"}


def test_sentences(tmp_path):
    files = write_grefcoco(tmp_path)
    dataset = GRefCOCODataset(**files, split="val", sentences="all")
    assert [s.meta["query"] for s in dataset] == [
        "the left one",
        "left",
        "both of them",
        "the zebra",
        "a zebra",
    ]
    assert [s.meta["sentence_id"] for s in dataset] == [10, 11, 20, 30, 31]
    assert dataset.count() == {"one_target": 2, "several_targets": 1, "without_target": 2}
    drawn = GRefCOCODataset(**files, split="val")
    epochs = []
    for epoch in range(20):
        drawn.set_epoch(epoch)
        epochs.append([(s.meta["query"], s.prompt, s.text) for s in drawn])
    drawn.set_epoch(4)
    assert [(s.meta["query"], s.prompt, s.text) for s in drawn] == epochs[4]
    assert {query for epoch in epochs for query, _, _ in epoch} == {s.meta["query"] for s in dataset}
    assert (
        GRefCOCODataset(**files, split="val", sentences="first", lower=False)[0].meta["query"]
        == "THE LEFT ONE"
    )


BAD = [
    (5, "expected an object", "malformed"),
    (reference(9, [1000]), "no sentence", "empty sentence"),
    (reference(9, [1000], " "), "empty one", "empty sentence"),
    (reference(9, [77], "what"), "annotation 77 is not in", "unknown annotation"),
    (reference(9, [1010], "what"), "annotation 1010 is of image 101", "unknown annotation"),
    (reference(9, [1000], "what", image_id=7), "image 7 is not in", "unknown image"),
    (reference(9, [1000], "what", no_target=True), "`no_target` is True", "malformed"),
    (reference(9, [-1], "what", no_target=False), "`no_target` is False", "malformed"),
    (reference(9, [1000, 1000], "what"), "names an object twice", "malformed"),
    (reference(9, [1000], "what", ann_id=1000), "`ann_id` is 1000, not a list", "malformed"),
    (reference(1, [1000], "again"), "its ref_id occurs twice", "duplicate id"),
]


@pytest.mark.parametrize(("entry", "match", "kind"), BAD)
def test_a_faulty_reference_is_named_or_skipped_and_counted(tmp_path, entry, match, kind):
    files = write_grefcoco(tmp_path, [*REFERENCES, entry])
    with pytest.raises(DataError, match=match) as caught:
        GRefCOCODataset(**files, split="val")
    assert "ref-" in str(caught.value) or "entry 4" in str(caught.value)
    dataset = GRefCOCODataset(**files, split="val", policy="skip", verify_images=True)
    assert len(dataset) == 3
    assert dataset.report()["skipped"] == {kind: 1}


def test_what_is_refused(tmp_path):
    files = write_grefcoco(tmp_path)
    with pytest.raises(ConfigError, match="no split 'testC'; it has train, val"):
        GRefCOCODataset(**files, split="testC")
    with pytest.raises(ConfigError, match="`targets` is 'all'"):
        GRefCOCODataset(**files, split="val", targets="all")
    with pytest.raises(ConfigError, match="`sentences` is 'one'"):
        GRefCOCODataset(**files, split="val", sentences="one")
    pickled = tmp_path / "grefs.p"
    pickled.write_bytes(pickle.dumps(REFERENCES, protocol=2))
    with pytest.raises(DataError, match="GRefCOCODataset reads them"):
        RefCOCODataset(**{**files, "refs_file": str(pickled)}, split="val")


def test_an_empty_mask_and_excluded_images(tmp_path):
    files = write_grefcoco(tmp_path)
    instances = json.loads(Path(files["instances_file"]).read_text())
    instances["annotations"][1]["segmentation"] = [box_polygon(90, 90, 95, 95)]
    Path(files["instances_file"]).write_text(json.dumps(instances))
    with pytest.raises(DataError, match="mask of annotation 1001 cannot be used"):
        GRefCOCODataset(**files, split="val")[1]
    ids = tmp_path / "ids.txt"
    ids.write_text("100\n")
    with pytest.raises(DataError, match="3 dropped"):
        GRefCOCODataset(**files, split="val", exclude_image_ids_file=str(ids))


def test_the_command_checks_it(tmp_path, monkeypatch, capsys):
    files = write_grefcoco(tmp_path, [*REFERENCES, BAD[3][0]])
    words = ["flmm-detseg", "data", "check", "grefcoco", *files.values(), "--splits", "val"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])["data_sets"]["grefcoco val"]
    assert (figures["records"], figures["without_target"], figures["problems"]) == (3, 1, 1)


def test_refclef_has_folders_its_own_splits_and_lists_of_run_lengths(tmp_path):
    files = write_refcoco(tmp_path)
    before = RefCOCODataset(**files, split="val", sentences="first")[0].masks

    def as_refclef(refs, instances):
        for entry in refs:
            entry["split"] = "testC"
        for image in instances["images"]:
            write_image(tmp_path / "images/05/images" / image["file_name"], 3)
            image["file_name"] = f"05/images/{image['file_name']}"
        parts = [np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)]
        parts[0][:10], parts[1][10:] = before[0][:10], before[0][10:]
        encoded = [coco_mask.encode(np.asfortranarray(part)) for part in parts]
        instances["annotations"][0]["segmentation"] = [
            {"size": list(SIZE), "counts": part["counts"].decode()} for part in encoded
        ]

    edit_refs(files, as_refclef)
    dataset = RefCOCODataset(**files, split="testC", sentences="first", verify_images=True)
    assert np.array_equal(dataset[0].masks, before)
    assert "05/images" in dataset[0].image_id

    def break_it(refs, instances):
        instances["annotations"][0]["segmentation"][1]["size"] = [1, 1]

    edit_refs(files, break_it)
    with pytest.raises(DataError, match=r"mask of annotation 1000: mask size \[1, 1\]"):
        RefCOCODataset(**files, split="testC")
