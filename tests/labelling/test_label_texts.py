"""Lines of text as labels and as phrases, with a stand-in for RapidOCR; beside a detector, and alone."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_ocr import install, text_image
from PIL import Image

from flmm_detseg.cli import main
from flmm_detseg.datasets import COCOInstancesDataset, JSONLDataset
from flmm_detseg.errors import ConfigError
from flmm_detseg.labelling import run
from flmm_detseg.labelling.classes import LabelClass, with_texts
from flmm_detseg.labelling.models import Detections
from flmm_detseg.labelling.phrases import in_reading_order, phrase_of
from flmm_detseg.labelling.run import LabelOptions, pseudo_label
from flmm_detseg.labelling.texts import TextOptions

# The stand-in reads from left to right: an upper line on the right, a lower one on the left, and one beside that.
BOXES = ((10, 50, 60, 70), (70, 52, 90, 72), (100, 20, 150, 40))
TEXTS = ("Sign in", "now", "09:41")


@pytest.fixture
def engine(monkeypatch, tmp_path):
    return install(monkeypatch, tmp_path / "packages", TEXTS)


@pytest.fixture
def options(engine, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(text_image((90, 160), *BOXES)).save(folder / "a.png")
    Image.fromarray(text_image((40, 40))).save(folder / "empty.png")
    return LabelOptions(
        image_dir=str(folder),
        out=str(tmp_path / "out.json"),
        phrases=str(tmp_path / "out.jsonl"),
        texts=TextOptions(),
    )


def label(options):
    figures = pseudo_label(options, progress=False)
    return figures, json.loads(Path(options.out).read_text())


def test_the_command_writes_labels_and_phrases_that_the_readers_take(options, tmp_path, monkeypatch, capsys):
    words = ["label", options.image_dir, "--texts", "--out", options.out, "--phrases", options.phrases]
    monkeypatch.setattr(sys, "argv", ["flmm-detseg", *words, "--text-scale", "2"])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["pseudo_by_class"] == {"text": 3}
    assert figures["phrases"] == {"out": options.phrases, "images": 1, "phrases": 3, "left_out": {}}
    labels = COCOInstancesDataset(options.out, options.image_dir, with_masks=True)
    (dense,) = [labels[n].dense for n in range(2) if len(labels[n].dense.boxes_xyxy)]
    assert sorted(map(tuple, dense.boxes_xyxy.round().tolist())) == sorted(BOXES)
    np.testing.assert_allclose(dense.weights, 0.8, atol=0.01)
    sample = JSONLDataset(options.phrases, options.image_dir)[0]
    assert sample.text == "the word 09:41 . the text Sign in . the word now ."
    assert [sample.phrase_text(k) for k in range(3)] == ["the word 09:41", "the text Sign in", "the word now"]
    for mask, (x0, y0, x1, y1) in zip(sample.masks, (BOXES[2], BOXES[0], BOXES[1]), strict=True):
        inside = np.zeros((90, 160), bool)
        inside[y0:y1, x0:x1] = True
        assert (mask & inside).sum() / (mask | inside).sum() > 0.85


def test_scores_heights_and_repeats(options, monkeypatch, engine):
    monkeypatch.setattr(engine, "texts", ["Menu", "menu", "a </s> b"])
    figures, content = label(options)
    assert [entry["text"] for entry in content["annotations"]].count("Menu") == 1
    assert figures["phrases"]["phrases"] == 0
    assert figures["phrases"]["left_out"] == {"control words": 1, "more than once in its image": 2}
    assert Path(options.phrases).read_text() == ""
    figures, _ = label(replace(options, thresholds=replace(options.thresholds, min_score=0.9)))
    assert figures["dropped_boxes"] == {"low score": 3}
    figures, _ = label(replace(options, texts=TextOptions(min_height=30)))
    assert figures["pseudo_annotations"] == 0


def test_what_read_the_texts_is_recorded_and_decides_what_is_done(options, engine):
    _, content = label(options)
    facts = content["info"]["provenance"]["texts"]
    assert set(facts) == {"models", "versions", "min_height", "scale"}
    assert content["info"]["provenance"]["detector"] is None
    assert label(options)[0]["images_of_earlier_runs"] == 2
    assert label(replace(options, texts=TextOptions(num_threads=2)))[0]["images_of_earlier_runs"] == 2
    assert label(replace(options, texts=TextOptions(scale=2.0)))[0]["images_of_earlier_runs"] == 0


class OneBox:
    """A detector that sees its first class in the upper left corner of every image."""

    prompts = ()
    facts: dict = {}
    asked: tuple = ()

    def __init__(self, name, classes, *rules) -> None:
        OneBox.asked = tuple(entry.name for entry in classes)

    def detect(self, images):
        box, score, label_ = torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([0.7]), torch.tensor([0])
        return [Detections(box, score, label_) for _ in images]


class Corner:
    """A segmenter whose masks are their boxes."""

    facts: dict = {}

    def __init__(self, *_) -> None: ...

    def segment(self, image, boxes):
        masks = np.zeros((len(boxes), *image.shape[:2]), bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = True
        return masks


def test_texts_beside_other_classes(options, monkeypatch):
    monkeypatch.setattr(run, "GroundingDinoDetector", OneBox)
    monkeypatch.setattr(run, "SamSegmenter", Corner)
    options = replace(options, detector="any", classes=("cat", "dog"))
    figures, content = label(options)
    assert OneBox.asked == ("cat", "dog")
    assert figures["pseudo_by_class"] == {"text": 3, "cat": 2}
    assert content["categories"][-1] == {"id": 3, "name": "text"}
    assert all(
        "segmentation" not in entry for entry in content["annotations"]
    )  # none has one, so all can be read
    assert JSONLDataset(options.phrases, options.image_dir)[0].masks.sum() == 20 * 50 * 2 + 20 * 20
    _, content = label(replace(options, segmenter="any", phrases=None))
    kinds = {entry["category_id"]: type(entry["segmentation"]) for entry in content["annotations"]}
    assert kinds == {1: dict, 3: list}


def test_the_category_of_the_ground_truth_is_used():
    categories = [{"id": 4, "name": "text"}, {"id": 9, "name": "cat"}]
    classes = (LabelClass("text", 4, ("text",)), LabelClass("cat", 9, ("cat",)))
    found, known = with_texts(classes, categories)
    assert [(entry.name, entry.category_id) for entry in found] == [("cat", 9), ("text", 4)]
    assert known == categories


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (dict(texts=None, phrases=None), "nothing to look for"),
        (dict(texts=None, detector="any"), "`phrases` is"),
        (dict(classes=("cat",)), "`classes` is given"),
        (dict(segmenter="any"), "`segmenter` is given"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options, change, match):
    with pytest.raises(ConfigError, match=match):
        replace(options, **change)


def test_a_detector_needs_a_class_beside_the_texts(options):
    with pytest.raises(ConfigError, match="no class but texts"):
        label(replace(options, detector="any", classes=("text",)))


def test_options_of_texts_need_texts(options, monkeypatch, capsys):
    for words in (["--text-scale", "2"], ["--text-threads", "2"], ["--text-height", "9"]):
        monkeypatch.setattr(
            sys, "argv", ["flmm-detseg", "label", options.image_dir, "--out", options.out, *words]
        )
        with pytest.raises(SystemExit) as exit_:
            main()
        assert exit_.value.code == 2
        assert "not --texts" in capsys.readouterr().err


@pytest.mark.case("security/overwrite")
def test_phrases_overwrite_no_input_and_not_the_labels(options):
    with pytest.raises(ConfigError, match="the same file"):
        replace(options, phrases=options.out)
    label(options)
    link = Path(options.out).with_name("link.json")
    link.symlink_to(options.out)
    for name in (str(link), str(Path(options.image_dir) / "a.png")):
        with pytest.raises(ConfigError, match="the result would replace it"):
            label(replace(options, phrases=name))


def test_names_of_texts():
    assert phrase_of("EXIT") == "the word EXIT"
    assert phrase_of(" No  smoking ") == "the text No smoking"


def test_reading_order():
    boxes = dict(title=(50, 0, 90, 20), left=(0, 32, 30, 15), right=(40, 30, 30, 15), low=(0, 60, 9, 9))
    entries = [{"bbox": boxes[name], "name": name} for name in ("low", "right", "title", "left")]
    assert [entry["name"] for entry in in_reading_order(entries)] == ["title", "left", "right", "low"]
