"""A conversation: the same answers and masks as single calls, with what was said before."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from chat_parts import speaking_grounder
from multi_task_parts import make_model
from pycocotools.coco import COCO

from flmm_detseg import Grounder
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.inference import Chat, ChatTurn
from flmm_detseg.inference.export.label_studio import LabelStudioTasks
from flmm_detseg.inference.regions import Region

IMAGE = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
QUESTION = "is the star red ?"


@pytest.fixture(scope="module")
def grounder() -> Grounder:
    return speaking_grounder()


def _chat(grounder: Grounder, **given) -> Chat:
    return Chat(grounder, IMAGE, max_new_tokens=12, **given)


def test_a_question_is_asked_with_the_turns_before_it(grounder) -> None:
    chat = _chat(grounder, keep_attention=True)
    first = chat.say(f"  {QUESTION} ")
    second = chat.say("what is left of it ?")
    turns = [(QUESTION, first.text)]
    expected = grounder.ask(
        IMAGE, "what is left of it ?", turns=turns, max_new_tokens=12, keep_attention=True
    )
    assert (second.kind, second.text) == ("question", expected.caption)
    assert second.text != grounder.ask(IMAGE, "what is left of it ?", max_new_tokens=12).caption
    assert len(second.phrases) == len(expected) > 0
    for index, phrase in enumerate(second.phrases):
        assert (phrase.label, phrase.spans) == (expected.phrases[index], expected.spans[index])
        assert second.text[slice(*phrase.spans[0])] == phrase.label
        np.testing.assert_array_equal(phrase.mask, expected.mask(index))
        assert phrase.score == pytest.approx(expected.scores[index])
        assert phrase.score_of == "mask"
        np.testing.assert_allclose(phrase.box_xyxy, expected.boxes_xyxy[index])
        assert (phrase.attention.shape, phrase.attention.dtype) == ((50, 70), np.float32)
        assert 0 <= phrase.attention.min() < phrase.attention.max() <= 1
    assert chat.turns == (first, second)
    assert first.request == QUESTION


def test_an_instruction_is_followed_and_remembered_as_text(grounder) -> None:
    chat = _chat(grounder)
    request = "in the image, segment the red star and detect the ring. is it small ?"
    turn = chat.say(request)
    assert (turn.kind, turn.uninterpreted) == ("instruction", ("in the image",))
    assert turn.text.startswith("the red star: segmented. ring: found as a phrase. ")
    for phrase, words in zip(turn.phrases, ("the red star", "ring"), strict=False):
        assert phrase.label == words == turn.text[slice(*phrase.spans[0])]
        expected = grounder.ground(IMAGE, words, [words])
        np.testing.assert_array_equal(phrase.mask, expected.masks[0])
        assert phrase.score == pytest.approx(expected.scores[0])
        assert phrase.attention is None
    asked = grounder.ask(IMAGE, "is it small ?", max_new_tokens=12)
    assert turn.text.endswith(asked.caption)
    named = turn.phrases[2:]
    assert [phrase.label for phrase in named] == list(asked.phrases)
    assert all(turn.text[slice(*phrase.spans[0])] == phrase.label for phrase in named)
    after = chat.say(QUESTION)
    turns = [(request, turn.text)]
    assert after.text == grounder.ask(IMAGE, QUESTION, turns=turns, max_new_tokens=12).caption


def test_attention_of_an_instruction_is_that_of_its_phrase(grounder) -> None:
    asked = _chat(grounder, keep_attention=True).say("segment the red star").phrases[0]
    grounded = grounder.ground(IMAGE, "the red star", ["the red star"], keep_attention=True)
    rows, columns = grounded.grid.crop_window(grounded.grid.output_grid)
    stack = torch.from_numpy(grounded.attention[0])[:, rows, columns]
    assert stack.shape[1] < grounded.attention.shape[2], "the image is padded"
    mean = (stack / stack.sum((1, 2), keepdim=True)).mean(0)
    mean, size = mean / mean.max(), (50, 70)
    by_hand = torch.nn.functional.interpolate(mean[None, None], size, mode="bilinear")[0, 0]
    np.testing.assert_allclose(asked.attention, by_hand, atol=2e-4)


def test_after_an_error_the_conversation_is_as_it_was(grounder) -> None:
    chat = _chat(grounder)
    first = chat.say(QUESTION)
    for request, message in (
        ("  ", "empty"),
        ("find", "names nothing"),
        ("what is <image> ?", "control word"),
        (7, "not a text"),
    ):
        with pytest.raises(DataError, match=message):
            chat.say(request)
    assert chat.turns == (first,)
    expected = _chat(grounder)
    expected.say(QUESTION)
    assert chat.say("what is left of it ?").text == expected.say("what is left of it ?").text


def test_the_oldest_turns_are_left_out_when_the_lmm_cannot_read_more(grounder) -> None:
    chat = _chat(grounder)
    long = ChatTurn("red star " * 150, "question", "the ring " * 150, (), IMAGE)
    short = ChatTurn("a star ?", "question", "red .", (), IMAGE)
    chat.turns = (long, replace(long, request="a " * 90), short)
    limit = grounder.model.lmm.position_limit
    assert limit == 1024
    turn = chat.say(QUESTION)
    turns = [(kept.request, kept.text) for kept in chat.turns[1:3]]
    assert turn.text == grounder.ask(IMAGE, QUESTION, turns=turns, max_new_tokens=12).caption
    # An answer that no LMM could read again.
    chat.turns = (replace(short, text="a </s>"), short)
    turn = chat.say(QUESTION)
    assert (
        turn.text == grounder.ask(IMAGE, QUESTION, turns=[("a star ?", "red .")], max_new_tokens=12).caption
    )


def test_turns_leave_room_for_the_answer(grounder, monkeypatch) -> None:
    long = ChatTurn("red star " * 150, "question", "the ring " * 150, (), IMAGE)
    short = ChatTurn("a star ?", "question", "red .", (), IMAGE)
    asked: list[list[str]] = []
    ask = grounder.ask

    def watched(*args: object, turns: list[tuple[str, str]], **options: object) -> object:
        asked.append([request for request, _ in turns])
        return ask(*args, turns=turns, **options)

    monkeypatch.setattr(grounder, "ask", watched)
    for longest in (12, 500):
        chat = Chat(grounder, IMAGE, max_new_tokens=longest)
        chat.turns = (long, short)
        chat.say(QUESTION)
    assert asked == [[long.request, short.request], [short.request]]


def _turn() -> ChatTurn:
    mask = np.zeros((50, 70), dtype=bool)
    mask[10:20, 5:30] = True
    ring = Region("segment", "a ring", 0.9, (5.0, 10.0, 30.0, 20.0), mask, spans=((0, 6),))
    car = Region("detect", "car", 0.4, (40.0, 5.0, 60.0, 25.0), None, "detector")
    none = Region("segment", "sky", 0.0, (0.0, 0.0, 0.0, 0.0), np.zeros_like(mask), spans=((11, 14),))
    return ChatTurn("what ?", "question", "a ring and sky .", (ring, car, none), IMAGE)


def test_a_turn_is_a_picture() -> None:
    turn = _turn()
    pictures = [turn.overlay(), turn.overlay([0]), turn.overlay([]), turn.overlay(boxes=True)]
    assert all(picture.dtype == np.uint8 and picture.shape[2] == 3 for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == 4
    with pytest.raises(DataError, match="phrase 3 does not exist; the turn has 3"):
        turn.overlay([3])


def test_a_turn_is_a_coco_file(tmp_path, capsys) -> None:
    turn = _turn()
    file = tmp_path / "turn.json"
    file.write_text(json.dumps(turn.to_coco_file("scene.png")))
    coco = COCO(str(file))
    ring, car = coco.loadAnns(coco.getAnnIds())
    np.testing.assert_array_equal(coco.annToMask(ring).astype(bool), turn.phrases[0].mask)
    assert (ring["score"], ring["score_of"], ring["spans"]) == (0.9, "mask", [[0, 6]])
    assert (car["bbox"], car["area"], car["score_of"]) == ([40.0, 5.0, 20.0, 20.0], 400.0, "detector")
    names = {entry["id"]: entry["name"] for entry in coco.loadCats(coco.getCatIds())}
    assert [names[entry["category_id"]] for entry in (ring, car)] == ["a ring", "car"]
    assert "sky" in names.values()


def test_a_detected_object_that_was_to_be_segmented_is_exported_by_its_mask() -> None:
    turn = _turn()
    car = replace(turn.phrases[1], kind="segment", mask=turn.phrases[0].mask)
    tasks = LabelStudioTasks()
    tasks.add(replace(turn, phrases=(car,)), "scene.png")
    assert [found["type"] for found in tasks.content()[0]["predictions"][0]["result"]] == ["brushlabels"]


def test_objects_of_a_detector_are_said_to_be_that() -> None:
    model = make_model()
    chat = Chat(Grounder(model), IMAGE, max_new_tokens=4, score_threshold=0.0)
    model.heads["detection"].score_threshold = 0.0
    (name, *_) = model.heads["detection"].class_names
    turn = chat.say(f"detect the {name}")
    assert turn.phrases, "random heads find something at threshold 0"
    assert {(p.label, p.score_of, p.attention) for p in turn.phrases} == {(name, "detector", None)}
    assert turn.text == f"{name}: {len(turn.phrases)} found."
    assert {turn.text[slice(*phrase.spans[0])] for phrase in turn.phrases} == {name}
    assert Chat(Grounder(model), IMAGE, score_threshold=1.0).say(f"detect the {name}").phrases == ()


def test_without_a_phrase_head_the_lmm_answers_all_the_same() -> None:
    model = make_model()
    del model.heads["phrase"]
    chat = Chat(Grounder(model), IMAGE, max_new_tokens=4)
    turn = chat.say(QUESTION)
    assert turn.text == Grounder(model).answer(IMAGE, QUESTION, max_new_tokens=4)
    assert turn.phrases == ()
    with pytest.raises(ConfigError, match="no phrase head"):
        chat.say("segment the red star")
