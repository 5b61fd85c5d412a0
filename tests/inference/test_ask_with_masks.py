"""Questions answered with mask tokens, from Python and in a conversation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from multi_task_parts import HEADS
from seg_parts import make_model, reasoning_sample, speak

from flmm_detseg import Grounder
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.inference.chat import Chat
from flmm_detseg.language.segment_names import MASK_TOKEN
from flmm_detseg.models import GroundingLMM

SPOKEN = f"the red star {MASK_TOKEN} . {MASK_TOKEN} is on the left ."
IMAGE = reasoning_sample(0).image


def grounder(text: str = SPOKEN, *, phrase: bool = False, **arguments) -> Grounder:
    model = make_model(**arguments)
    if phrase:
        torch.manual_seed(0)
        heads = {**dict(model.heads.items()), "phrase": HEADS["phrase"]}
        model = GroundingLMM(model.lmm, heads, retention=model.retention.mode)
    speak(model, text)
    return Grounder(model)


@pytest.mark.parametrize("phrase", [False, True])
def test_an_answer_with_tokens_has_their_masks_and_names(phrase):
    asked = grounder(phrase=phrase)
    result = asked.ask(IMAGE, "what could roll ?")
    assert result.caption == SPOKEN
    assert result.phrases == ("the red star", MASK_TOKEN)
    assert [SPOKEN[slice(*span[0])] for span in result.spans] == list(result.phrases)
    found = asked.model.answer_with_masks(reasoning_sample(0, 0))
    np.testing.assert_array_equal(result.masks, found.prediction.masks.numpy())
    assert result.overlay().shape[2] == 3
    # Words of the answer that the caller names are the phrase head's.
    if phrase:
        assert asked.ask(IMAGE, "what could roll ?", ["star"]).phrases == ("star",)
    else:
        with pytest.raises(ConfigError, match="no head for task 'phrase'"):
            asked.ask(IMAGE, "what could roll ?", ["star"])


def test_an_answer_without_tokens_is_grounded_by_the_phrase_head_where_there_is_one():
    assert grounder("a star .", phrase=True).ask(IMAGE, "what ?").phrases == ("a star",)
    alone = grounder("a star .").ask(IMAGE, "what ?")
    assert (alone.caption, len(alone)) == ("a star .", 0)


def test_asked_for_masks_nothing_else_is_grounded():
    asked = grounder("a star is on the right .", phrase=True)
    assert len(asked.ask(IMAGE, "what could roll ?")) == 1
    result = asked.ask(IMAGE, "what could roll ?", reasoning=True)
    assert (result.caption, len(result)) == ("a star is on the right .", 0)
    with pytest.raises(DataError, match="leave out phrases and spans"):
        asked.ask(IMAGE, "what could roll ?", ["star"], reasoning=True)


def test_switched_needs_to_be_asked_for_masks():
    asked = grounder(retention="switched")
    plain = asked.ask(IMAGE, "what could roll ?", max_new_tokens=8)
    assert len(plain) == 0
    assert plain.caption == asked.answer(IMAGE, "what could roll ?", max_new_tokens=8)
    assert asked.ask(IMAGE, "what could roll ?", reasoning=True).phrases == ("the red star", MASK_TOKEN)


def test_a_conversation_shows_them():
    chat = Chat(grounder(), IMAGE)
    turn = chat.say("what could roll ?")
    assert (turn.kind, turn.text) == ("question", SPOKEN)
    assert [(phrase.label, phrase.score_of) for phrase in turn.phrases] == [
        ("the red star", "mask"),
        (MASK_TOKEN, "mask"),
    ]
    told = chat.say("segment the star")
    assert (told.kind, told.text) == ("instruction", SPOKEN)
    assert len(told.phrases) == 2
    assert chat.say("and now ?").text == SPOKEN, "earlier turns hold tokens, and are read as words"


def test_under_switched_an_instruction_reaches_the_adapted_lmm():
    chat = Chat(grounder(retention="switched"), IMAGE, max_new_tokens=12)
    assert chat.say("segment the star").text == SPOKEN
    assert chat.say("what could roll ?").phrases == ()


def test_a_model_without_such_a_head_says_so():
    asked = grounder(phrase=True)
    del asked.model.heads["reasoning"]
    with pytest.raises(ConfigError, match="no head for task 'reasoning'"):
        asked.ask(IMAGE, "what could roll ?", reasoning=True)
    del asked.model.heads["phrase"]
    with pytest.raises(ConfigError, match="grounds no phrases"):
        asked.capture  # noqa: B018 (a property)
