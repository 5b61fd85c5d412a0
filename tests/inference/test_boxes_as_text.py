"""What the LMM is told of detections before it answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from multi_task_parts import HEADS, make_model
from tiny import tiny_llava
from transformers import AutoTokenizer

from flmm_detseg import Grounder
from flmm_detseg.datasets.tinyworld import parse_box
from flmm_detseg.errors import ConfigError
from flmm_detseg.inference import Chat, Instructor
from flmm_detseg.inference.boxes_as_text import MAX_BOXES, boxes_as_text
from flmm_detseg.inference.regions import Region
from flmm_detseg.language import dequantise_boxes, parse_answer
from flmm_detseg.models import GroundingLMM
from flmm_detseg.structures import Sample
from flmm_detseg.utils.paths import find

SIZE = (96, 128)
IMAGE = np.random.default_rng(2).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
STAR = Region("detect", "star", 0.9, (10.0, 50.0, 40.0, 90.0), None, "detector")
ARROW = Region("detect", "arrow", 0.4, (60.0, 5.0, 120.0, 45.0), None, "detector")


def test_boxes_come_back_from_the_template():
    text = boxes_as_text((STAR, ARROW), SIZE)
    assert text.startswith("Detections: arrow [")
    assert text.endswith("]\n")
    items = parse_answer(text).answer.detections
    assert [item.label for item in items] == ["arrow", "star"], "the largest first"
    found = dequantise_boxes(np.array([item.box for item in items]), SIZE)
    np.testing.assert_allclose(found, [ARROW.box_xyxy, STAR.box_xyxy], atol=0.07)
    assert boxes_as_text((), SIZE) == "Detections: none\n"


def test_boxes_come_back_from_the_tiny_llavas_words():
    text = boxes_as_text((STAR, ARROW), SIZE, "tinyworld")
    parts = [part.strip() for part in text.split(" . ") if part.strip()]
    assert [part.rsplit(" ", 4)[0] for part in parts] == ["an arrow", "a star"], "from the top"
    for part, region in zip(parts, (ARROW, STAR), strict=True):
        box = parse_box(" ".join(part.split()[-4:]), SIZE)
        np.testing.assert_allclose(box, region.box_xyxy, atol=0.65)
    assert boxes_as_text((), SIZE, "tinyworld") == ""
    tokenizer = AutoTokenizer.from_pretrained(find("data/models/tiny_llava"))
    assert len(tokenizer.tokenize(text)) == len(text.split()), "each word is one of its own"


def test_only_the_surest_are_told():
    many = [
        Region("detect", "star", k / 100, (float(k), 0.0, k + 20.0, 20.0), None, "detector")
        for k in range(90)
    ]
    for words in ("template", "tinyworld"):
        text = boxes_as_text(many, (200, 200), words)
        assert text.count("star") == MAX_BOXES
        assert text == boxes_as_text(many[-MAX_BOXES:], (200, 200), words)
    with pytest.raises(ConfigError, match="'json' are not known; allowed: template, tinyworld"):
        boxes_as_text(many, (200, 200), "json")


@pytest.fixture
def model(monkeypatch) -> GroundingLMM:
    made = make_model(
        lmm=tiny_llava(),
        heads={"detection": {**HEADS["detection"], "score_threshold": 0.0}, "phrase": HEADS["phrase"]},
    )
    asked: list[str] = []

    def answer(sample, *, max_new_tokens: int) -> str:
        asked.append(sample.prompt)
        return "two"

    monkeypatch.setattr(made, "answer", answer)
    made.asked = asked
    return made


@pytest.mark.parametrize("words", [True, "tinyworld"])
def test_an_instructor_tells_what_its_detector_finds(model, words):
    scores = sorted(region.score for region in Instructor(model, score_threshold=0.0)._detect(IMAGE))
    limit = scores[-3]
    told = Instructor(model, score_threshold=limit, answer_with_detections=words)
    found = told.follow(IMAGE, "detect everything. how many stars are there ?")
    assert len(found.regions) == 3
    style = "template" if words is True else words
    assert model.asked == [boxes_as_text(found.regions, SIZE, style) + "how many stars are there ?"]
    assert found.text.endswith("two")
    plain = Instructor(model, score_threshold=limit).follow(IMAGE, "how many stars are there ?")
    assert model.asked[1:] == ["how many stars are there ?"]
    assert plain.regions == ()


def test_a_conversation_tells_it_before_each_question_and_remembers_the_question_alone(model, monkeypatch):
    prompts = []
    ask = Grounder.ask

    def watched(self, image, question, **given):
        prompts.append((question, list(given["turns"])))
        return ask(self, image, question, **given)

    monkeypatch.setattr(Grounder, "ask", watched)
    grounder = Grounder(model)
    chat = Chat(grounder, IMAGE, max_new_tokens=4, score_threshold=0.0, answer_with_detections="tinyworld")
    before = Instructor(model, score_threshold=0.0, answer_with_detections="tinyworld").with_detections(
        IMAGE, ""
    )
    assert before.count(" . ") > 1
    first = chat.say("is the star red ?")
    chat.say("what is left of it ?")
    assert first.request == "is the star red ?"
    assert [question for question, _ in prompts] == [
        f"{before}is the star red ?",
        f"{before}what is left of it ?",
    ]
    assert prompts[1][1] in ([], [("is the star red ?", first.text)])


def test_it_needs_a_detection_head():
    model = make_model(lmm=tiny_llava(), heads={"phrase": HEADS["phrase"]})
    with pytest.raises(ConfigError, match="`answer_with_detections` needs a detection head"):
        Instructor(model, answer_with_detections=True)
    with pytest.raises(ConfigError, match="'json' are not known"):
        Instructor(model, answer_with_detections="json")


def test_a_class_of_the_semantic_head_is_all_its_pixels():
    names = ["sky", "grass", "water"]
    heads = {"segmentation": {**HEADS["segmentation"], "class_names": names}}
    model = make_model(lmm=tiny_llava(), heads=heads).eval()
    instructor = Instructor(model)
    found = instructor.follow(IMAGE, "segment the sky, segment the grass and segment everything")
    (labels,) = model.segment([_segmented()])
    (shares,) = model.class_probabilities([_segmented()])
    torch.testing.assert_close(shares.sum(0), torch.ones(SIZE))
    assert torch.equal(shares.argmax(0), labels)
    present = [label for label in range(3) if (labels == label).any()]
    assert len(present) > 1
    expected = [label for label in (0, 1) if label in present] + present
    assert [region.label for region in found.regions] == [names[label] for label in expected]
    for region, label in zip(found.regions, expected, strict=True):
        mask = (labels == label).numpy()
        np.testing.assert_array_equal(region.mask, mask)
        rows, columns = np.nonzero(mask)
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        np.testing.assert_allclose(region.box_xyxy, box)
        assert region.score == pytest.approx(float(shares[label][torch.from_numpy(mask)].mean()), abs=1e-5)
    assert f"everything: {len(present)} found." in found.text
    assert found.overlay().shape[2] == 3
    with pytest.raises(ConfigError, match="no phrase head"):
        instructor.follow(IMAGE, "segment the dog")
    with pytest.raises(ConfigError, match="no phrase head"):
        instructor.follow(IMAGE, "detect the sky")


def _segmented() -> Sample:
    return Sample("image", IMAGE, "", (), task="segmentation")


@pytest.mark.parametrize(
    ("heads", "words", "by_map"),
    [
        (("segmentation",), "the sky", True),
        (("segmentation",), "the dog", False),
        (("segmentation", "phrase"), "the sky", False),
        (("segmentation", "phrase", "detection"), "the sky", True),
        (("segmentation", "phrase", "detection"), "the star", False),
        (("segmentation", "detection"), "the star", True),
    ],
)
def test_which_head_segments_a_class(heads, words, by_map):
    known = {"detection": ["star", "ring"], "segmentation": ["sky", "star", "ground"]}
    chosen = {
        name: {**HEADS[name], **({"class_names": known[name]} if name in known else {})} for name in heads
    }
    instructor = Instructor(make_model(lmm=tiny_llava(), heads=chosen))
    calls = []
    instructor._cover = lambda pixels, labels: calls.append(set(labels)) or {}
    instructor._ground = lambda pixels, steps, keep: [None] * len(steps)
    instructor.follow(IMAGE, f"segment {words}")
    wanted = {known["segmentation"].index(words.split()[-1])} if by_map else set()
    assert calls == [wanted]


def test_a_conversation_prefers_the_label_map_to_asking():
    heads = {"segmentation": {**HEADS["segmentation"], "class_names": ["sky", "grass", "water"]}}
    chat = Chat(Grounder(make_model(lmm=tiny_llava(), heads=heads)), IMAGE)
    turn = chat.say("segment everything")
    assert turn.kind == "instruction"
    assert {phrase.label for phrase in turn.phrases} <= {"sky", "grass", "water"}
    assert len(turn.phrases) > 0


def test_an_open_semantic_head_takes_the_classes_it_is_given():
    heads = {"segmentation": {**HEADS["segmentation"], "class_names": ["star", "ring"], "classifier": "open"}}
    model = make_model(lmm=tiny_llava(), heads=heads).eval()
    names = ["red square", "circle", "star"]
    found = Instructor(model, classes=names).follow(IMAGE, "segment everything")
    head = model.heads["segmentation"]
    assert head.class_names == ("star", "ring"), "the model's own classes are back"
    with head.other_classes(model.lmm.class_embeddings(names), names):
        (labels,) = model.segment([_segmented()])
    present = [names[label] for label in labels.unique().tolist()]
    assert [region.label for region in found.regions] == present
    closed = {"segmentation": HEADS["segmentation"]}
    with pytest.raises(ConfigError, match="`classifier`='open'; this one knows only a, b, c"):
        Instructor(make_model(lmm=tiny_llava(), heads=closed), classes=["dog", "cat"])
