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
    # Nothing that would be withheld.
    none = None if head.presence_score is None else torch.zeros(0, device=lmm.device)
    found = {
        index: mask_prediction(answer, torch.zeros(0, 1, 1, device=lmm.device), presence=none)
        for index, answer in enumerate(answers)
        if not spans[index]
    }
    if wanted:
        found.update(zip(wanted, head.predict(*_read(lmm, answers, generations, wanted)), strict=True))
    presence: dict[int, float] = {}
    if head.presence_score is not None:
        asked = [i for i, sample in enumerate(samples) if spans[i] or sample.task in head.tasks]
        if asked:
            logits = torch.cat(head.presence_logits(*_read(lmm, answers, generations, asked)))
            presence = dict(zip(asked, head.presence_score.probability(logits).tolist(), strict=True))
    return [
        AnswerWithMasks(
            generation.text,
            tuple(own),
            tuple(name_spans(generation.text, own)),
            found[index],
            generation,
            presence.get(index),
        )
        for index, (generation, own) in enumerate(zip(generations, spans, strict=True))
    ]


def _read(
    lmm: LMMAdapter, answers: Sequence[Sample], generations: Sequence[Generation], places: Sequence[int]
) -> tuple[LMMStates, GroundingBatch]:
    """What some of the answers were written with, as if they had been read together."""
    states = [lmm.states_of_phrases(generations[index], ()) for index in places]
    joined = LMMStates(
        answer=[part for item in states for part in item.answer or ()],
        vision=[maps for item in states for maps in item.vision or ()] or None,
    )
    return joined, GroundingBatch(
        [answers[index] for index in places], [generations[index].inputs for index in places]
    )


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
