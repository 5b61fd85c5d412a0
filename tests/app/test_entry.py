"""What a threshold leaves of a turn with detected objects."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
from PIL import Image

from flmm_detseg.app.board import SCORES
from flmm_detseg.app.entry import Entry
from flmm_detseg.inference.chat import ChatTurn
from flmm_detseg.inference.regions import Region


def turn() -> ChatTurn:
    mask = np.zeros((20, 30), dtype=bool)
    mask[2:8, 3:9] = True
    return ChatTurn(
        "detect the stars",
        "instruction",
        "star: found 2.",
        (
            Region("detect", "star", 0.9, (3.0, 2.0, 9.0, 8.0), mask, "detector", spans=((0, 4),)),
            Region("detect", "star", 0.4, (10.0, 2.0, 19.0, 8.0), None, "detector", spans=((0, 4),)),
            Region(
                "segment", "the ring", 0.2, (3.0, 2.0, 9.0, 8.0), mask, "mask", np.ones((20, 30), np.float32)
            ),
        ),
        np.zeros((20, 30, 3), dtype=np.uint8),
    )


def test_detected_objects_below_the_threshold_are_left_out_of_downloads_and_masks_are_not():
    entry = Entry.of("t1", turn(), (20, 30), 10)
    assert [found["score"] for found in entry.coco("a.png")["annotations"]] == [0.9, 0.4, 0.2]
    assert [found["score"] for found in entry.coco("a.png", 0.5)["annotations"]] == [0.9, 0.2]
    shown = np.asarray(Image.open(io.BytesIO(entry.overlay(0.5))))
    phrases = turn().phrases
    np.testing.assert_array_equal(shown, replace(turn(), phrases=(phrases[0], phrases[2])).overlay())


def test_a_box_without_a_mask_has_a_layer_and_no_attention():
    entry = Entry.of("t1", turn(), (20, 30), 10)
    assert entry.kinds(1) == ("mask", "outline")
    assert entry.layer(1, "mask") == entry.layer(1, "outline")
    assert entry.layer(1, "attention") is None
    assert entry.kinds(2) == ("mask", "outline", "attention")
    assert entry.layer(2, "attention") is not None
    assert entry.layer(3, "mask") is None
    assert {phrase.score_of for phrase in turn().phrases} <= set(SCORES)


def test_boxes_of_a_reduced_picture_are_downloaded_at_the_files_size():
    found = Entry.of("t1", turn(), (40, 90), 10).coco("a.png")["annotations"]
    assert found[1]["bbox"] == [30.0, 4.0, 27.0, 12.0]
