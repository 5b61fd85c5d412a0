"""Attention that people read is the model's own eager attention, also with several images and two turns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_conformance import as_stack, own_forward, samples
from tiny_families import FAMILIES, build

from flmm_detseg.inference import AttentionReader
from flmm_detseg.lmms.capture.answer_text import phrase_inputs
from flmm_detseg.lmms.capture.packing import image_columns
from flmm_detseg.structures import Phrase, Sample, Turn

pytestmark = pytest.mark.parametrize("family", FAMILIES)
TEXT = "a red circle left of a blue square"
TURNS = [("what is it ?", "a red ring"), ("and left ?", "a star")]


def reader(family: str) -> AttentionReader:
    """Reads every layer that has rows."""
    facts = build(family).facts
    layers = sorted(set(range(facts.num_layers)) - set(facts.rowless_layers))
    return AttentionReader(build(family, rows=dict(layers=layers)))


@torch.no_grad()
def eager(lmm, sample: Sample) -> torch.Tensor:
    """Stacks of the sample's phrases ``[K, C, rows, cols]`` from the model's own eager attention."""
    item = lmm.prepare(sample)
    layers = torch.cat([layer[0] for layer in own_forward(lmm, item, "eager").attentions])
    rows = [layers[:, tokens].mean(1)[:, image_columns(item)] for tokens in item.phrase_tokens]
    return torch.stack([as_stack(one, item) for one in rows])


def test_a_text_that_is_read(family):
    read = reader(family)
    sample, other = samples()[0], samples()[3]
    for turns, further in (((), ()), (TURNS, [other.image])):
        maps = read.read(sample.image, TEXT, ["a red circle", "square"], turns=turns, more_images=further)
        expected = Sample(
            "a", sample.image, TEXT, (Phrase(((0, 12),)), Phrase(((28, 34),))),
            turns=tuple(Turn(*turn) for turn in turns), more_images=tuple(further),
        )  # fmt: skip
        for index, theirs in enumerate(eager(read.lmm, expected)):
            ours = torch.from_numpy(maps.rows(index)).flatten(0, 2)
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_words_of_an_answer(family):
    read = reader(family)
    sample, other = samples()[0], samples()[3]
    maps = read.answer(sample.image, "where ?", turns=TURNS, more_images=[other.image], max_new_tokens=5)
    asked = replace(
        sample, prompt="where ?", text="", phrases=(), turns=tuple(Turn(*turn) for turn in TURNS),
        more_images=(other.image,),
    )  # fmt: skip
    assert maps.text == read.lmm.generate(asked, max_new_tokens=5)
    # Against the same sequence of tokens, which the tokenizer might have cut in another way.
    generation = read.lmm.generate_with_states(asked, read.capture, max_new_tokens=5)
    item = generation.inputs
    layers = torch.cat([layer[0] for layer in own_forward(read.lmm, item, "eager").attentions])
    for index, ((start, end),) in enumerate(maps.spans):
        (tokens,) = phrase_inputs(generation, [Phrase(((start, end),))]).phrase_tokens
        theirs = as_stack(layers[:, tokens].mean(1)[:, image_columns(item)], item)
        torch.testing.assert_close(
            torch.from_numpy(maps.rows(index)).flatten(0, 2), theirs, rtol=0, atol=1e-5
        )
