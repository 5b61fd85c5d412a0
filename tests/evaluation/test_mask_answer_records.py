from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from mask_answer_parts import SIZE, masks_of, query, rows

from flmm_detseg.errors import DataError, RunError
from flmm_detseg.evaluation import mask_answer_record
from flmm_detseg.evaluation.mask_answer_records import num_unparsable
from flmm_detseg.ops import masks as mask_ops
from flmm_detseg.structures import LogitMaps, Phrase


def test_counts_are_those_of_numpy_and_ready_for_json(monkeypatch):
    monkeypatch.setattr(mask_ops, "PIECE_PIXELS", 100)  # one mask a piece
    rng = np.random.default_rng(0)
    targets, masks = rng.random((2, *SIZE)) < 0.4, rng.random((3, *SIZE)) < 0.4
    ignored = rng.random(SIZE) < 0.2
    sample = query("r", list(targets), ignore=ignored, names=("a ring", "a star"))
    text = "a ring [SEG] , a cup [SEG] and a star [SEG] ."
    record = mask_answer_record(sample, text, masks_of("r", masks), ("a ring", "a cup", "a star"))
    assert json.loads(json.dumps(record)) == record
    targets, masks = targets & ~ignored, masks & ~ignored
    united, target = masks.any(0), targets.any(0)
    assert record["area"] == united.sum()
    assert record["target_area"] == target.sum()
    assert record["intersection"] == (united & target).sum()
    assert record["areas"] == [mask.sum() for mask in masks]
    assert record["target_areas"] == [mask.sum() for mask in targets]
    assert record["intersections"] == [[(mask & other).sum() for other in targets] for mask in masks]
    assert (record["num_masks"], record["num_targets"], record["num_unparsable"]) == (3, 2, 0)
    assert record["names"] == ["a ring", "a cup", "a star"]
    assert record["target_names"] == ["a ring", "a star"]


def test_targets_without_names_are_called_as_in_the_reference_answer():
    def names(sample):
        return mask_answer_record(sample, "none", masks_of("r", []))["target_names"]

    sample = query("r", [rows(0), rows(1)])
    assert sample.text == "the thing 0 [SEG] and the thing 1 [SEG]"
    assert names(replace(sample, text="the red ring [SEG] and a star is [SEG]")) == ["the red ring", "a star"]
    assert names(replace(query("r", [rows(0)]), text="it is [SEG] .", phrases=(Phrase(((6, 11),)),))) == []


def test_groups_are_words():
    meta = {"family": "extremes", "held_out": None, "absent": "attribute", "form": "explained"}
    sample = query("r", [], is_sentence=False, wording=3, **meta)
    assert mask_answer_record(sample, "none", masks_of("r", []))["groups"] == {
        "family": "extremes", "held_out": "no", "absent": "attribute", "form": "explained", "query": "short",
        "words": "up_to_10", "targets": "none",
    }  # fmt: skip
    words = "which of the rings is left of two stars and red ?"
    sample = query("r", [rows(0), rows(1)], is_sentence=True, query=words)
    assert mask_answer_record(sample, "none", masks_of("r", []))["groups"] == {
        "query": "long",
        "words": "more",
        "targets": "several",
    }


@pytest.mark.parametrize(
    ("text", "num_masks", "expected"),
    [
        ("the ring [SEG] and the star [SEG] .", 2, 0),
        ("the ring [SEG] and the star [SEG] .", 1, 1),  # spelled in letters
        ("the ring <seg> .", 0, 1),
        ("the ring [ S E G ] and [SEG]", 1, 1),
        ("the ring seg] and </SEG>", 0, 2),
        ("the ring [SEG] and the star [SE", 1, 1),
        ("a segment [of] the segway (see below), sega [s", 0, 1),
        ("there is no such object .", 0, 0),
    ],
)
def test_what_looks_like_a_token_and_is_none(text, num_masks, expected):
    assert num_unparsable(text, num_masks) == expected


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda s, p: (replace(s, masks=None), "[SEG]", p, ()), DataError, "r: it has no masks"),
        (lambda s, p: (replace(s, masks=s.masks[:, :5]), "[SEG]", p, ()), DataError, r"shape \(1, 5, 10\)"),
        (lambda s, p: (s, "[SEG]", masks_of("q", [rows(0)]), ()), DataError, "of record 'q'"),
        (lambda s, p: (s, "none", p, ()), RunError, "1 masks and 0 names for the 0"),
        (lambda s, p: (s, "[SEG]", p, ("a", "b")), RunError, "1 masks and 2 names"),
        (lambda s, p: (replace(s, meta={"ignore": np.zeros((2, 2), bool)}), "[SEG]", p, ()), DataError, "ignore"),
        (lambda s, p: (replace(s, meta={"ignore": np.zeros(SIZE)}), "[SEG]", p, ()), DataError, "float64"),
        (lambda s, p: (replace(s, meta={"absent": [None]}), "[SEG]", p, ()), DataError, "`meta.'absent'.` is a list"),
        (
            lambda s, p: (s, "[SEG]", replace(p, refined=LogitMaps(torch.full((1, *SIZE), torch.nan), SIZE)), ()),
            RunError,
            "NaN",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(change, error, match):
    with pytest.raises(error, match=match):
        mask_answer_record(*change(query("r", [rows(0)]), masks_of("r", [rows(0)])))
