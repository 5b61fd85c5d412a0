"""Questions answered with mask tokens, from Python and in a conversation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from multi_task_parts import HEADS
from seg_parts import make_model, reasoning_sample, speak

from flmm_detseg import Grounder
from flmm_detseg.app.frames import Frames
from flmm_detseg.app.limits import Limits
from flmm_detseg.app.service import About, Service
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.heads import AnswerPresenceHead, PresenceHead
from flmm_detseg.inference.chat import Chat
from flmm_detseg.language.mask_wording import PHRASE_QUESTIONS
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


def test_an_instruction_is_asked_in_the_words_of_the_training(monkeypatch):
    asked = grounder()
    prompts = []
    answer = GroundingLMM.answer_with_masks

    def watched(model, sample, **given):
        prompts.append(sample.prompt)
        return answer(model, sample, **given)

    monkeypatch.setattr(GroundingLMM, "answer_with_masks", watched)
    turn = Chat(asked, IMAGE, keep_attention=True).say("segment the star on the left")
    assert prompts == ["where is the star on the left in this image ?"]
    assert prompts[0] in [wording.format("the star on the left") for wording in PHRASE_QUESTIONS]
    assert len(turn.phrases) == 2
    assert turn.phrases[0].attention is None


def test_attention_is_refused_before_the_lmm_answers(monkeypatch):
    monkeypatch.setattr(GroundingLMM, "answer_with_masks", lambda *_, **__: pytest.fail("it answered"))
    with pytest.raises(ConfigError, match="`keep_attention` is for phrases"):
        grounder().ask(IMAGE, "what could roll ?", reasoning=True, keep_attention=True)


def test_under_switched_an_instruction_reaches_the_adapted_lmm():
    chat = Chat(grounder(retention="switched"), IMAGE, max_new_tokens=12)
    assert chat.say("segment the star").text == SPOKEN
    assert chat.say("what could roll ?").phrases == ()


PRESENCE = dict(type=AnswerPresenceHead, width=8)


def test_below_the_threshold_the_masks_are_empty():
    asked = grounder(presence=PRESENCE)
    every = asked.ask(IMAGE, "what could roll ?", reasoning=True)
    assert every.presence.tolist() == pytest.approx([every.answer_presence] * 2)
    assert every.masks.any()
    for limit, found in ((every.answer_presence - 0.01, True), (every.answer_presence + 0.01, False)):
        for changes in (dict(reasoning=True), {}):
            result = asked.ask(IMAGE, "what could roll ?", min_presence=limit, **changes)
            assert (result.caption, result.answer_presence) == (SPOKEN, every.answer_presence)
            assert result.found.all() == result.masks.any() == found
            assert result.not_found == (() if found else result.phrases)
            if found:
                np.testing.assert_array_equal(result.masks, every.masks)
    head = asked.model.heads["reasoning"].presence
    with pytest.raises(ConfigError, match="head for mask tokens was never calibrated"):
        asked.ask(IMAGE, "what could roll ?", reasoning=True, min_presence="stored")
    head.temperature.fill_(1.5)
    head.threshold.fill_(0.9)
    assert asked.ask(IMAGE, "what ?", reasoning=True, min_presence="stored").min_presence == np.float32(0.9)


def test_an_answer_without_a_mask_has_a_presence_too():
    asked = grounder("there is none .", presence=PRESENCE)
    result = asked.ask(IMAGE, "what could roll ?", reasoning=True, min_presence=0.99)
    assert (len(result), result.not_found, result.presence.shape) == (0, (), (0,))
    assert 0 < result.answer_presence < 1
    plain = asked.ask(IMAGE, "what is it ?")
    assert plain.answer_presence is None, "it asked for nothing that could be absent"
    assert grounder().ask(IMAGE, "what could roll ?", reasoning=True).answer_presence is None


def phrase_presence(**arguments) -> Grounder:
    """A head for phrases that has presence beside one for mask tokens that has none."""
    asked = grounder(phrase=True, **arguments)
    lmm = asked.model.lmm
    asked.model.heads["phrase"].presence = PresenceHead(
        (2, 3), (1,), lmm.hidden_size, lmm.vision_channels, lmm.attention_channels, width=16, num_heads=2, cells=4
    )  # fmt: skip
    return asked


def test_a_threshold_that_an_answer_may_not_have_is_refused_before_the_answer(monkeypatch):
    asked = phrase_presence()
    answered = []
    own = asked.model.lmm.generate_with_states
    monkeypatch.setattr(
        asked.model.lmm, "generate_with_states", lambda *a, **k: answered.append(1) or own(*a, **k)
    )
    for call in (
        lambda: asked.ask(IMAGE, "what could roll ?", reasoning=True, min_presence=0.5),
        lambda: asked.ask(IMAGE, "what could roll ?", min_presence=0.5),
        lambda: Chat(asked, IMAGE, min_presence=0.5),
        lambda: Service(asked, None, Frames({}), Limits(), About("a model"), min_presence=0.5),
    ):
        with pytest.raises(ConfigError, match="head for mask tokens has no presence head"):
            call()
    assert not answered
    # Words that are named are the phrase head's, and so is all that the untouched LMM says.
    assert asked.ask(IMAGE, "what could roll ?", ["star"], min_presence=0.5).presence.shape == (1,)
    switched = phrase_presence(retention="switched")
    assert switched.ask(IMAGE, "what ?", max_new_tokens=4, min_presence=0.5).min_presence == 0.5
    assert Chat(switched, IMAGE, max_new_tokens=4, min_presence=0.5).say("what ?").kind == "question"


def test_a_conversation_says_what_is_not_there():
    chat = Chat(grounder(presence=PRESENCE), IMAGE, min_presence=0.999)
    turn = chat.say("segment the star")
    assert (turn.text, turn.phrases) == (SPOKEN, ())
    assert turn.not_found == ("the red star", MASK_TOKEN)
    assert (
        len(Chat(grounder(presence=PRESENCE), IMAGE, min_presence=0.0).say("segment the star").phrases) == 2
    )


def test_a_model_without_such_a_head_says_so():
    asked = grounder(phrase=True)
    del asked.model.heads["reasoning"]
    with pytest.raises(ConfigError, match="no head for task 'reasoning'"):
        asked.ask(IMAGE, "what could roll ?", reasoning=True)
    del asked.model.heads["phrase"]
    with pytest.raises(ConfigError, match="grounds no phrases"):
        asked.capture  # noqa: B018 (a property)
