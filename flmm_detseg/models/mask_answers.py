"""Masks of generated answers: one for each mask token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from flmm_detseg.errors import ConfigError
from flmm_detseg.heads import Head
from flmm_detseg.heads.mask_prediction import mask_prediction
from flmm_detseg.language.segment_names import name_spans
from flmm_detseg.lmms.base import LMMAdapter
from flmm_detseg.structures import (
    AnswerWithMasks,
    Generation,
    GroundingBatch,
    LMMStates,
    Phrase,
    Prediction,
    Sample,
)

Span = tuple[int, int]


@torch.no_grad()
def masks_of_answers(
    lmm: LMMAdapter, head: Head[Prediction], samples: Sequence[Sample], generations: Sequence[Generation]
) -> list[AnswerWithMasks]:
    """Masks of all answers together, from the states that they were written with.

    Args:
        lmm: Gave the answers.
        head: Makes a mask for each mask token.
        samples: The questions; their texts, phrases and masks are not read.
        generations: The answers, with what the head captures.

    Returns:
        An answer for each, in order.

    Raises:
        ConfigError: The head reads no mask token.
    """
    spans = [token_spans(generation, head) for generation in generations]
    answers = [
        replace(sample, text=generation.text, phrases=tuple(Phrase((span,)) for span in own), masks=None)
        for sample, generation, own in zip(samples, generations, spans, strict=True)
    ]
    wanted = [index for index, own in enumerate(spans) if own]
    found = {
        index: mask_prediction(answer, torch.zeros(0, 1, 1, device=lmm.device))
        for index, answer in enumerate(answers)
        if not spans[index]
    }
    if wanted:
        states = [lmm.states_of_phrases(generations[index], ()) for index in wanted]
        joined = LMMStates(
            answer=[part for item in states for part in item.answer or ()],
            vision=[maps for item in states for maps in item.vision or ()] or None,
        )
        inputs = [generations[index].inputs for index in wanted]
        batch = GroundingBatch([answers[index] for index in wanted], inputs)
        found.update(zip(wanted, head.predict(joined, batch), strict=True))
    return [
        AnswerWithMasks(
            generation.text,
            tuple(own),
            tuple(name_spans(generation.text, own)),
            found[index],
            generation,
        )
        for index, (generation, own) in enumerate(zip(generations, spans, strict=True))
    ]


def token_spans(generation: Generation, head: Head[Prediction]) -> list[Span]:
    """Where a head's mask tokens stand in a generated answer.

    They are found by their id: other tokens may spell the same text. The untouched LMM may utter that id too (a row
    that its tables had to spare), which is no mask token: its tokenizer reads something else there.

    Args:
        generation: The answer.
        head: Says which token.

    Returns:
        Half-open character ranges, in order.

    Raises:
        ConfigError: The head reads no mask token.
    """
    if head.reads_token is None or head.token_id is None:
        raise ConfigError(f"a {type(head).__name__} reads no mask token of an answer")
    found = []
    for place in (generation.token_ids == head.token_id).nonzero().flatten().tolist():
        start = generation.text.find(head.reads_token, *generation.token_offsets[place])
        if start >= 0:
            found.append((start, start + len(head.reads_token)))
    return found
