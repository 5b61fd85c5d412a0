"""The one forward pass of a language model's decoder, for sequences of any content."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from flmm_detseg.compat.transformers5 import cache_argument
from flmm_detseg.lmms.capture.packing import PhraseRows, answer_states
from flmm_detseg.lmms.capture.per_sample import (
    hidden_rows,
    phrase_likelihood,
    split_attention,
    split_hidden,
)
from flmm_detseg.lmms.capture.row_tap import RowTap
from flmm_detseg.structures import CaptureSpec, LMMInputs, LMMStates


@dataclass(frozen=True)
class Sequences:
    """Rows for the decoder, padded on the right: plain, packed, in groups, with or without images.

    Right padding needs no mask under causal attention: no real token looks to its right.

    Attributes:
        embeds: ``[R, T, d]``.
        positions: Rotary positions, int64 ``[R, T]``, or ``[A, R, T]`` with several axes; None: 0..T-1.
        visible: bool ``[R, 1, T, T]``, True where a query (third axis) may look; None for plain causal attention.
        blocks: Tokens that see each other whatever their order: int64 ``[R, T]``, equal numbers above 0; None: none.
        arguments: Further arguments of the decoder.
        members: Per row the samples in it.
        token_index: Per sample the place of each of its tokens in its row, int64 ``[T_i]``.
    """

    embeds: Tensor
    positions: Tensor | None = None
    visible: Tensor | None = None
    blocks: Tensor | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    members: list[list[int]] = field(default_factory=list)
    token_index: list[Tensor] = field(default_factory=list)


def image_blocks(image_mask: Tensor) -> Tensor:
    """Numbers runs of neighbouring image tokens, int64 as ``image_mask`` (bool ``[R, T]``), 0 elsewhere."""
    starts = image_mask & ~torch.nn.functional.pad(image_mask, (1, 0))[:, :-1]
    return starts.cumsum(1) * image_mask


def decoder_mask(
    sequences: Sequences, windows: Mapping[str, int | None], past: int = 0
) -> Tensor | dict[str, Tensor]:
    """The decoder's mask: bool, True where a query may look; by layer type where these differ.

    Args:
        sequences: T tokens.
        windows: See :class:`~flmm_detseg.lmms.family.LMMFacts`.
        past: Tokens before them that are in the cache; all are visible.

    Returns:
        ``[R, past + T]`` of ones where transformers adds causality itself, else ``[1 or R, 1, T, past + T]``; a dict of
        the latter by layer type where ``windows`` names some.
    """
    embeds, visible, blocks = sequences.embeds, sequences.visible, sequences.blocks
    rows, count = embeds.shape[:2]
    device = embeds.device
    if visible is None and blocks is None:
        # All ones, not None: transformers then keeps sdpa's causal kernel and builds no mask, or builds its own for
        # windows; without a mask, positions that jump are taken for several packed sequences. After stored tokens
        # the causal mask is written out: transformers would build the same mask, far slower.
        mask = torch.ones(rows, past + count, dtype=torch.bool, device=device)
        if not windows and 1 < count < past + count:
            mask = mask[:1].expand(count, -1).tril(past)[None, None]
        return mask
    assert not past, "blocks and packed rows begin a sequence"
    if visible is None:
        visible = torch.ones(count, count, dtype=torch.bool).tril()[None, None]
    visible = visible.to(device)
    same = None
    if blocks is not None:
        blocks = blocks.to(device)
        same = ((blocks[:, :, None] == blocks[:, None, :]) & (blocks > 0)[:, :, None])[:, None]
    places = torch.arange(count)[None] if sequences.positions is None else sequences.positions
    places = (places if places.ndim == 2 else places[0]).to(device)
    masks = {}
    for kind, window in (windows or {"": None}).items():
        mask = visible
        if window is not None and window < count:
            # By positions: in a packed row, neighbours may be far apart.
            mask = mask & (places[:, :, None] - places[:, None, :] < window)[:, None]
        masks[kind] = mask if same is None else mask | same
    return masks[""] if list(masks) == [""] else masks


def run_decoder(
    language_model: PreTrainedModel,
    sequences: Sequences,
    mask: Tensor | Mapping[str, Tensor],
    *,
    tap: RowTap | None = None,
    past: Cache | None = None,
    further: Mapping[str, Any] | None = None,
) -> Any:
    """Runs the decoder.

    Args:
        language_model: Decoder of transformers.
        sequences: What it reads.
        mask: From :func:`decoder_mask`.
        tap: Wanted attention rows; needs the row tap's attention function.
        past: Keys and values so far, which grow.
        further: Further arguments.

    Returns:
        Its output.
    """
    arguments = {**sequences.arguments, **(further or {})}
    if sequences.positions is not None:
        arguments["position_ids"] = sequences.positions.to(sequences.embeds.device)
    if tap is not None:
        arguments["row_tap"] = tap
    if past is not None:
        arguments |= cache_argument(language_model, past)
    return language_model(
        inputs_embeds=sequences.embeds, attention_mask=mask, use_cache=past is not None, **arguments
    )


@dataclass(frozen=True)
class Captured:
    """What was kept of one pass.

    Attributes:
        attention: From a row tap, ``[R, K, C, N]`` float32; None where it was not asked for.
        hidden: From :func:`~flmm_detseg.lmms.capture.per_sample.hidden_rows`; None as above.
        last: Last hidden states ``[R, T, d]``.
        hidden_layers: Decoder layers of ``hidden``.
    """

    attention: Tensor | None
    hidden: list[Tensor] | None
    last: Tensor
    hidden_layers: tuple[int, ...] = ()


def read(
    language_model: PreTrainedModel,
    sequences: Sequences,
    places: PhraseRows,
    capture: CaptureSpec,
    *,
    tap: RowTap | None,
    windows: Mapping[str, int | None],
    eager: bool = False,
) -> Captured:
    """One pass over whole sequences, and what is kept of it.

    Args:
        language_model: Decoder of transformers.
        sequences: What it reads.
        places: Phrase tokens among them.
        capture: What to keep.
        tap: Collects attention rows, where they are to be kept.
        windows: See :class:`~flmm_detseg.lmms.family.LMMFacts`.
        eager: The decoder's blocks are transformers' eager ones.

    Returns:
        What ``capture`` asks for of the whole batch; the last hidden states in any case.

    Raises:
        ConfigError: The decoder has no layer whose hidden rows are to be kept.
    """
    mask: Any = decoder_mask(sequences, windows)
    further = {}
    if eager:
        mask = _additive(mask, sequences.embeds.dtype)
        if tap is not None:
            further["output_attentions"] = True
    wanted = places.positions.to(sequences.embeds.device)
    layers = capture.hidden_layers(len(language_model.layers))
    with hidden_rows(language_model, wanted, layers) if layers else nullcontext() as hidden:
        output = run_decoder(language_model, sequences, mask, tap=None if eager else tap, further=further)
    if eager and tap is not None:
        for layer, attention in enumerate(output.attentions):
            tap.collect_eager(layer, attention)
    return Captured(None if tap is None else tap.finish(), hidden, output.last_hidden_state, layers)


def _additive(mask: Any, dtype: torch.dtype) -> Any:
    """Eager blocks add the mask to the scores."""
    if isinstance(mask, dict):
        return {kind: _additive(part, dtype) for kind, part in mask.items()}
    if mask.ndim == 2:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def states_of(
    captured: Captured,
    sequences: Sequences,
    places: PhraseRows,
    inputs: Sequence[LMMInputs],
    capture: CaptureSpec,
    unembed: Callable[[Tensor], Tensor],
    vision: list[dict[int, Tensor]] | None,
) -> LMMStates:
    """Distributes what was kept of a pass to the samples.

    Args:
        captured: From :func:`read`.
        sequences: What was read.
        places: Phrase tokens among them.
        inputs: The samples.
        capture: What was asked for.
        unembed: From last states to logits.
        vision: Per sample its vision maps.

    Returns:
        Per sample what was captured of it, in the order of ``inputs``; None for what was not.
    """
    states = logits = likelihood = None
    if capture.logits or capture.answer or capture.likelihood:
        states = answer_states(captured.last, inputs, sequences.members, sequences.token_index)
        if capture.logits:
            logits = list(unembed(torch.cat(states)).split([len(part) for part in states]))
        if capture.likelihood:
            likelihood = [phrase_likelihood(item, part, unembed) for item, part in zip(inputs, states)]
    hidden = None
    if captured.hidden is not None:
        hidden = split_hidden(captured.hidden, captured.hidden_layers, places)
    return LMMStates(
        attention=None if captured.attention is None else split_attention(captured.attention, inputs, places),
        hidden=hidden,
        vision=vision,
        logits=logits,
        logits_start=None if logits is None else [item.prefix_length - 1 for item in inputs],
        answer=states if capture.answer else None,
        likelihood=likelihood,
    )
