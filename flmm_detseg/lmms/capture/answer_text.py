"""Where generated tokens stand in the text, and answers as inputs of a further pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from os.path import commonprefix

import torch
from torch import Tensor

from flmm_detseg.lmms.processors import check_spans
from flmm_detseg.ops.spans import tokens_of_spans
from flmm_detseg.structures import Generation, LMMInputs, Phrase


def text_and_offsets(
    token_ids: Sequence[int], decode: Callable[[Sequence[int]], str]
) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Finds which characters each token spells, by decoding ever longer beginnings.

    Decoders join tokens in ways of their own (spaces, pieces of words, bytes of one character), so tokens are never
    decoded alone.

    Args:
        token_ids: A tokens.
        decode: From tokens to text; may leave tokens out.

    Returns:
        The text without white space around it, and per token its character range in it: starts and ends never fall,
        together they cover the text. Tokens whose text still changes when the next one comes (bytes of one
        character) have the range of the character they begin.
    """
    text = decode(token_ids)
    lead = len(text) - len(text.lstrip())
    stripped = text.strip()
    ranges = []
    start = end = 0
    for count in range(1, len(token_ids) + 1):
        so_far = decode(token_ids[:count])
        settled = max(start, len(commonprefix([so_far, text])))
        unsettled = not text.startswith(so_far)
        end = max(end, min(settled + unsettled, len(text)))
        ranges.append((start, end))
        start = settled
    limit = len(stripped)

    def inside(place: int) -> int:
        return min(max(place - lead, 0), limit)

    return stripped, tuple((inside(start), inside(end)) for start, end in ranges)


def answered(question: LMMInputs, token_ids: Tensor) -> LMMInputs:
    """The question with generated tokens after it, all of them labels; no phrases.

    Args:
        question: Image and prompt.
        token_ids: int64 ``[A]``.

    Returns:
        Inputs of T + A tokens.
    """
    input_ids = torch.cat([question.input_ids, token_ids])
    positions = question.position_ids
    if positions is not None:
        further = question.next_position + torch.arange(len(token_ids))
        positions = torch.cat([positions, further.expand(len(positions), -1)], dim=1)
    return replace(
        question,
        input_ids=input_ids,
        position_ids=positions,
        phrase_tokens=torch.zeros(0, len(input_ids), dtype=torch.bool),
        labels=torch.cat([question.labels, token_ids]),
        image_mask=torch.cat([question.image_mask, torch.zeros(len(token_ids), dtype=torch.bool)]),
    )


def phrase_inputs(generation: Generation, phrases: Sequence[Phrase]) -> LMMInputs:
    """The answer with phrases of it, as the processor would have prepared it had it been given these tokens.

    Args:
        generation: The answer.
        phrases: K character ranges of ``generation.text``.

    Returns:
        The inputs of the answer with ``phrase_tokens`` ``[K, T]``; a phrase of white space only has no token.

    Raises:
        PhraseNotFoundError: A span lies outside the answer.
    """
    inputs, text = generation.inputs, generation.text
    check_spans(text, phrases, inputs.record_id)
    spans = [phrase.spans for phrase in phrases]
    phrase_tokens = torch.zeros(len(phrases), len(inputs.input_ids), dtype=torch.bool)
    phrase_tokens[:, inputs.prefix_length :] = tokens_of_spans(generation.token_offsets, text, spans)
    return replace(inputs, phrase_tokens=phrase_tokens)
