"""Greedy decoding that keeps the rows of every generated token, and where these tokens stand in the text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from os.path import commonprefix

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from flmm_detseg.language import token_log_probs
from flmm_detseg.lmms.capture.per_sample import hidden_rows
from flmm_detseg.lmms.capture.row_tap import RowTap
from flmm_detseg.lmms.capture.token_rules import TokenRules
from flmm_detseg.lmms.processors import check_spans
from flmm_detseg.ops.spans import tokens_of_spans
from flmm_detseg.structures import Generation, LMMInputs, Phrase


@dataclass(frozen=True)
class DecodedRows:
    """A generated tokens; attention and hidden rows as in :class:`~flmm_detseg.structures.Generation`."""

    token_ids: Tensor
    log_probs: Tensor
    attention: Tensor | None
    hidden: Tensor | None


@torch.no_grad()
def decode_greedily(
    language_model: nn.Module,
    output_embeddings: nn.Module,
    prefix: Tensor,
    *,
    make_tap: Callable[[], RowTap] | None,
    keep_hidden: bool,
    end_ids: Collection[int],
    max_new_tokens: int,
    rules: TokenRules | None = None,
) -> DecodedRows:
    """Decodes one sequence with a cache of keys and values: the most probable token, or the one that rules choose.

    A token's rows belong to the step in which it is the query, the one after its choice, so the last token gets a
    step of its own, in which nothing is chosen.

    Args:
        language_model: Decoder of transformers whose attention function is the row tap's.
        output_embeddings: From its last state to logits.
        prefix: Embedded image and prompt ``[1, T, d]``.
        make_tap: A fresh tap on query 0 for each step; None to keep no attention.
        keep_hidden: Keep hidden rows.
        end_ids: Tokens that end the answer; they are part of it.
        max_new_tokens: Longest answer, at least 1.
        rules: Of the model's generation config; log-probabilities do not know them.

    Returns:
        Tokens and log-probabilities on the CPU, rows where the model is.
    """
    # Without the config: a cache for sliding windows would drop the image's keys.
    cache = DynamicCache()
    embed = language_model.get_input_embeddings()

    def step(embeds: Tensor, tap: RowTap | None = None) -> Tensor:
        length = cache.get_seq_length() + embeds.shape[1]
        mask = torch.ones(1, length, dtype=torch.bool, device=embeds.device)
        arguments = {} if tap is None else {"row_tap": tap}
        output = language_model(
            inputs_embeds=embeds, attention_mask=mask, past_key_values=cache, use_cache=True, **arguments
        )
        return output.last_hidden_state[:, -1:]

    token_ids: list[int] = []
    log_probs: list[Tensor] = []
    attention: list[Tensor] = []
    last = step(prefix)
    query = torch.zeros(1, 1, dtype=torch.int64, device=prefix.device)
    with hidden_rows(language_model, query) if keep_hidden else nullcontext() as collected:
        stopped = False
        while not stopped:
            logits = output_embeddings(last)[:, 0].float()
            token = logits.argmax(-1) if rules is None else rules.choose(logits)
            token_ids.append(int(token))
            log_probs.append(token_log_probs(logits, token).cpu())
            tap = make_tap() if make_tap is not None else None
            stopped = token_ids[-1] in end_ids or len(token_ids) == max_new_tokens
            stopped = stopped or (rules is not None and rules.stopped)
            last = step(embed(token[None]), tap)
            if tap is not None:
                # The tap hands over float32; what it rounded from is the model's dtype.
                attention.append(tap.finish()[0, 0].to(prefix.dtype))
    hidden = None
    if collected is not None:
        hidden = torch.cat(collected, dim=1)[0].unflatten(0, (len(token_ids), -1)).transpose(0, 1)
    return DecodedRows(
        token_ids=torch.tensor(token_ids),
        log_probs=torch.cat(log_probs),
        attention=torch.stack(attention, dim=1) if attention else None,
        hidden=hidden,
    )


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
    offsets = tuple(tuple(min(max(place - lead, 0), limit) for place in pair) for pair in ranges)
    return stripped, offsets


def answered(question: LMMInputs, token_ids: Tensor) -> LMMInputs:
    """The question with generated tokens behind it, all of them labels; no phrases.

    Args:
        question: Image and prompt.
        token_ids: int64 ``[A]``.
    """
    input_ids = torch.cat([question.input_ids, token_ids])
    return replace(
        question,
        input_ids=input_ids,
        phrase_tokens=torch.zeros(0, len(input_ids), dtype=torch.bool),
        labels=torch.cat([question.labels, token_ids]),
        image_mask=torch.cat([question.image_mask, torch.zeros(len(token_ids), dtype=torch.bool)]),
    )


def phrase_inputs(generation: Generation, phrases: Sequence[Phrase]) -> LMMInputs:
    """The answer with phrases of it, as the processor would have prepared it had it been given these tokens.

    Args:
        generation: The answer.
        phrases: K character ranges of ``generation.text``.

    Raises:
        PhraseNotFoundError: A span lies outside the answer.
    """
    inputs, text = generation.inputs, generation.text
    check_spans(text, phrases, inputs.record_id)
    spans = [phrase.spans for phrase in phrases]
    phrase_tokens = torch.zeros(len(phrases), len(inputs.input_ids), dtype=torch.bool)
    phrase_tokens[:, inputs.prefix_length :] = tokens_of_spans(generation.token_offsets, text, spans)
    return replace(inputs, phrase_tokens=phrase_tokens)
