"""Answers with masks, generated freely: states, names, retention, several at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cached_parts import cached_llava
from seg_parts import HEADS, make_model, reasoning_sample, speak
from tiny import tiny_llava

from flmm_detseg.errors import ConfigError
from flmm_detseg.heads import AnswerPresenceHead, LanguageHead
from flmm_detseg.language.segment_names import MASK_TOKEN
from flmm_detseg.lmms.lora.layers import lora_layers
from flmm_detseg.models import GroundingLMM
from flmm_detseg.structures import Phrase, Turn

SPOKEN = f"the red star {MASK_TOKEN} , a blue ring {MASK_TOKEN} ."
EVERY_HEAD = pytest.mark.parametrize("head", HEADS)


def question(index: int = 0, **changes):
    return replace(reasoning_sample(index, 0), text="", masks=None, **changes)


@torch.no_grad()
def talking(text: str = SPOKEN, head: str = "sam", **arguments) -> GroundingLMM:
    model = make_model(head, **arguments).eval()
    for layer in lora_layers(model.lmm.model).values():
        for up in layer.lora_B.values():
            up.weight.normal_(std=0.3)
    speak(model, text)
    return model


@EVERY_HEAD
@pytest.mark.parametrize("position", ["before", "at"])
def test_states_of_the_generation_are_those_of_reading_the_answer(head, position):
    model = talking(head=head, position=position)
    found = model.answer_with_masks(question())
    assert found.text == SPOKEN
    assert [found.text[slice(*span)] for span in found.spans] == [MASK_TOKEN] * 2
    assert found.names == ("the red star", "a blue ring")
    inputs = found.generation.inputs
    read = model.lmm.encode([inputs], model.heads["reasoning"].capture)
    torch.testing.assert_close(found.generation.answer_states, read.answer[0], rtol=1e-4, atol=1e-4)
    teacher = replace(question(), text=found.text, phrases=tuple(Phrase((span,)) for span in found.spans))
    assert torch.equal(model.lmm.prepare(teacher).input_ids, inputs.input_ids)
    (forced,) = model.results("reasoning", [teacher])
    torch.testing.assert_close(found.prediction.mask_logits, forced.mask_logits, rtol=1e-3, atol=1e-3)
    assert found.prediction.masks.shape == (2, 48, 72)


@pytest.mark.parametrize("head", ["sam", "pointer"])
def test_with_the_background_cache_they_are_too(head):
    """Groups of patches are read in another order; the answer's own states are meant all the same."""
    lmm = cached_llava(added_tokens=[MASK_TOKEN])
    torch.manual_seed(1)
    model = GroundingLMM(lmm, dict(reasoning=HEADS[head])).eval()
    speak(model, SPOKEN)
    asked = question(meta={"objects_xyxy": [[4, 4, 40, 30]]})
    found = model.answer_with_masks(asked)
    assert (found.text, found.names) == (SPOKEN, ("the red star", "a blue ring"))
    teacher = replace(asked, text=found.text, phrases=tuple(Phrase((span,)) for span in found.spans))
    (forced,) = model.results("reasoning", [teacher])
    torch.testing.assert_close(found.prediction.mask_logits, forced.mask_logits, rtol=1e-3, atol=1e-3)
    with lmm.base_mode():
        (plain,) = model.results("reasoning", [replace(teacher, text="a star .", phrases=())])
    assert len(plain.packed) == 0


def test_several_are_answered_as_one_by_one():
    model = talking()
    samples = [question(0), question(1, image_id="a"), question(2, turns=(Turn("the ring ?", SPOKEN),))]
    together = model.answers_with_masks(samples)
    for sample, ours in zip(samples, together, strict=True):
        alone = model.answer_with_masks(sample)
        assert (ours.text, ours.names, ours.spans) == (alone.text, alone.names, alone.spans)
        torch.testing.assert_close(
            ours.prediction.mask_logits, alone.prediction.mask_logits, rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(ours.prediction.scores, alone.prediction.scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", ["sam", "pointer"])
def test_an_answer_says_whether_there_is_what_was_asked_for(head):
    """Also one without a token; from the states it was written with, as if it had been read."""
    for text, count in ((SPOKEN, 2), ("a star is on the right .", 0)):
        model = talking(text, head, presence=dict(type=AnswerPresenceHead, width=8), retention="switched")
        samples = [question(0), question(1)]
        read = torch.cat(model.presence_logits("reasoning", samples)).sigmoid().tolist()
        together = model.answers_with_masks(samples)
        assert [found.presence for found in together] == pytest.approx(read, abs=1e-4)
        alone = [model.answer_with_masks(sample).presence for sample in samples]
        assert [found.presence for found in together] == pytest.approx(alone, abs=1e-4)
        for found in together:
            assert found.prediction.presence.tolist() == pytest.approx([found.presence] * count)
        # The untouched LMM was asked nothing that could be absent.
        plain = model.answer_with_masks(question(task="vqa"), max_new_tokens=4)
        assert plain.presence is None
        assert plain.prediction.presence.shape == (0,)
    assert talking().answer_with_masks(question()).presence is None


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("a star is on the right .", 0),
        (f"{MASK_TOKEN} .", 1),
        (f"{MASK_TOKEN}", 1),
        (f"{MASK_TOKEN} {MASK_TOKEN} {MASK_TOKEN}", 3),
        (f"a ring {MASK_TOKEN} is near the star {MASK_TOKEN} , left of the square {MASK_TOKEN} .", 3),
    ],
)
def test_there_are_as_many_masks_as_tokens(text, count):
    found = talking(text).answer_with_masks(question())
    assert found.text == text
    assert len(found.names) == len(found.spans) == len(found.prediction.packed) == count
    assert found.prediction.masks.shape == (count, 48, 72)
    assert found.prediction.boxes_xyxy.shape == (count, 4)


def test_a_text_that_other_tokens_spell_is_no_mask_token():
    """Only the id counts."""
    model = talking()
    tokenizer = model.lmm.processor.tokenizer
    ids = tokenizer.convert_tokens_to_ids(["[", "##S", "##E", "##G", "##]"])
    assert tokenizer.unk_token_id not in ids
    found = model.answer_with_masks(question())
    token_id = model.heads["reasoning"].token_id
    spelled = replace(
        found.generation,
        token_ids=torch.where(found.generation.token_ids == token_id, ids[0], found.generation.token_ids),
    )
    other = model.masks_of_answer(question(), spelled)
    assert (other.spans, other.names, len(other.prediction.packed)) == ((), (), 0)


def test_an_answer_that_ends_early_has_the_masks_it_wrote():
    model = talking()
    found = model.answer_with_masks(question(), max_new_tokens=4)
    assert found.text == f"the red star {MASK_TOKEN}"
    assert found.names == ("the red star",)
    assert len(found.prediction.packed) == 1


@EVERY_HEAD
def test_switched_leaves_plain_questions_to_the_untouched_lmm_bit_for_bit(head):
    model = talking(head=head, retention="switched")
    plain = question(task="vqa")
    with model.lmm.base_mode():
        own = model.lmm.generate_with_states(plain, model.heads["reasoning"].capture, max_new_tokens=8)
    found = model.answer_with_masks(plain, max_new_tokens=8)
    assert torch.equal(found.generation.token_ids, own.token_ids)
    assert torch.equal(found.generation.answer_states, own.answer_states)
    assert torch.equal(found.generation.log_probs, own.log_probs)
    assert found.text == model.answer(plain, max_new_tokens=8)
    assert len(found.prediction.packed) == 0
    assert model.answer_with_masks(question()).text == SPOKEN
    assert model.answer(question()) == SPOKEN


def test_the_untouched_lmm_cannot_speak_the_token_even_by_its_id():
    """An added id may be a row that the model had to spare; what that is to the untouched model is no mask token."""
    model = talking(retention="switched")
    token_id = model.heads["reasoning"].token_id
    generation = model.answer_with_masks(question(task="vqa"), max_new_tokens=4).generation
    uttered = replace(generation, token_ids=torch.full_like(generation.token_ids, token_id))
    found = model.masks_of_answer(question(task="vqa"), uttered)
    assert MASK_TOKEN not in found.text
    assert len(found.prediction.packed) == 0


def test_a_model_that_reads_no_mask_token_says_so():
    model = make_model()
    del model.heads["reasoning"]
    with pytest.raises(ConfigError, match="no head for task 'reasoning'"):
        model.answer_with_masks(question())
    with pytest.raises(ConfigError, match="no head for task 'phrase'"):
        model.answer_with_states(question())


def test_a_head_needs_the_token():
    lmm = tiny_llava()
    with pytest.raises(ConfigError, match=r"model.heads.reasoning` reads \[SEG\]: the LMM has no token"):
        GroundingLMM(lmm, dict(reasoning=HEADS["sam"], language=LanguageHead()))
