"""Answers that grow in step are those of one question at a time, for every family."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import make_sample
from tiny_families import FAMILIES, build

from flmm_detseg.lmms.capture.decoder import PrefixDecoder
from flmm_detseg.structures import CaptureSpec, Generation, Sample

NUM_TOKENS = 9
CAPTURE = CaptureSpec(hidden="all", vision_layers=(1,), answer=True)
PROMPTS = (
    "Where is it ?",
    "Please describe the image : what is left of the small white house near the dog on the green grass ?",
    "the big yellow triangle",
)


def questions() -> list[Sample]:
    """Prompts of different lengths; the first two about one image, the last about another."""
    first, other = make_sample(1), make_sample(2)
    samples = [replace(first, prompt=prompt, image_id="one") for prompt in PROMPTS[:2]]
    return [*samples, replace(other, prompt=PROMPTS[2], image_id="two")]


# Between them: plain keys, rotary axes, windows, layers without attention.
SHORT = ("llava", "qwen3_vl", "gemma3", "lfm2_vl")


def token_that_some_say(answers: list[Generation]) -> int | None:
    """A token that ends one answer earlier than another; None where all say the same."""
    said = [answer.token_ids.tolist() for answer in answers]
    for token in dict.fromkeys(sum(said, [])):
        if len({(ids.index(token) if token in ids else len(ids)) for ids in said}) > 1:
            return token
    return None


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in SHORT else pytest.mark.long) for name in FAMILIES]
)
def test_they_equal_single_answers(family, monkeypatch):
    lmm = build(family)
    samples = questions()
    alone = [lmm.generate_with_states(sample, CAPTURE, max_new_tokens=NUM_TOKENS) for sample in samples]
    # One answer ends early: it leaves the batch, and the others go on.
    end = token_that_some_say(alone)
    assert end is not None or family == "gemma3", "answers that do not differ show little"
    if end is not None:
        lmm.model.generation_config.eos_token_id = end
        alone = [lmm.generate_with_states(sample, CAPTURE, max_new_tokens=NUM_TOKENS) for sample in samples]
        assert len({len(answer.token_ids) for answer in alone}) > 1
    sizes = []
    feed = PrefixDecoder.feed

    def counted(self, embeds, *args, **kwargs):
        sizes.append(len(embeds))
        return feed(self, embeds, *args, **kwargs)

    monkeypatch.setattr(PrefixDecoder, "feed", counted)
    together = lmm.generate_together(samples, CAPTURE, max_new_tokens=NUM_TOKENS)
    assert (max(sizes) == 3) == (not lmm.facts.rowless_layers)
    for one, other in zip(alone, together, strict=True):
        assert other.text == one.text
        assert other.token_ids.tolist() == one.token_ids.tolist()
        assert other.token_offsets == one.token_offsets
        torch.testing.assert_close(other.log_probs, one.log_probs, rtol=0, atol=2e-4)
        torch.testing.assert_close(other.hidden, one.hidden, rtol=2e-4, atol=2e-4)
        torch.testing.assert_close(other.answer_states, one.answer_states, rtol=2e-4, atol=2e-4)
        assert torch.equal(other.vision[1], one.vision[1])
        # The prompt ran alone: what the first token was chosen from is the same to the bit.
        assert torch.equal(other.answer_states[0], one.answer_states[0])


def test_attention_rows_are_taken_one_by_one():
    lmm = build("llava")
    samples = questions()[:2]
    capture = CaptureSpec(attention=True)
    for sample, answer in zip(
        samples, lmm.generate_together(samples, capture, max_new_tokens=4), strict=True
    ):
        alone = lmm.generate_with_states(sample, capture, max_new_tokens=4)
        assert torch.equal(answer.attention, alone.attention)
