"""From the language model's packed batch back to the samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from flmm_detseg.language import token_log_probs
from flmm_detseg.lmms.capture.packing import PhraseRows, phrase_entries
from flmm_detseg.ops.rows import take_tokens
from flmm_detseg.structures import HiddenRows, LMMInputs, PatchGrid


@contextmanager
def hidden_rows(
    language_model: PreTrainedModel, positions: Tensor, layers: Sequence[int]
) -> Iterator[list[Tensor]]:
    """Collects states after decoder layers, those of the last after the final norm, while the context is open.

    Only of passes of this thread: others may use the model at the same time.

    Args:
        language_model: A decoder of transformers with ``layers``.
        positions: Wanted tokens, int64 ``[R, P]``.
        layers: Wanted layers, 1..L, ascending.

    Yields:
        A list that fills during the forward pass: ``[R, P, d]`` per wanted layer without autograd. With autograd
        whole states ``[R, T, d]`` (they are alive anyway): cutting them inside of a layer that gradient
        checkpointing repeats would change what the repetition has to save.
    """
    collected: list[Tensor] = []
    owner = get_ident()

    def keep(_: nn.Module, __: tuple[Any, ...], output: Tensor | Sequence[Tensor] | ModelOutput) -> None:
        if get_ident() != owner:
            return
        states = output if isinstance(output, Tensor) else output[0]
        collected.append(states if states.requires_grad else take_tokens(states, positions))

    with ExitStack() as stack:
        modules = (*language_model.layers[:-1], language_model)
        for module in (modules[layer - 1] for layer in layers):
            stack.callback(module.register_forward_hook(keep).remove)
        yield collected


def split_hidden(collected: list[Tensor], layers: tuple[int, ...], places: PhraseRows) -> list[HiddenRows]:
    """Distributes the collected states to their samples.

    Args:
        collected: From :func:`hidden_rows`.
        layers: What was asked for there.
        places: Of the batch.

    Returns:
        Per sample its rows of these layers.
    """
    positions = places.positions.to(collected[0].device)
    rows = torch.stack(
        [take_tokens(states, positions) if states.requires_grad else states for states in collected]
    )
    return [
        HiddenRows(states=rows[:, row, entries], phrase_ids=phrase_ids.to(rows.device), layers=layers)
        for (row, entries, _), phrase_ids in zip(places.row_slices, places.sample_phrase_ids, strict=True)
    ]


@torch.no_grad()
def phrase_likelihood(item: LMMInputs, states: Tensor, unembed: Callable[[Tensor], Tensor]) -> Tensor:
    """How likely the language model finds the tokens of a sample's phrases, each after all that stands before it.

    Args:
        item: The sample.
        states: Last states from its prompt's last token on, ``[T - prefix_length + 1, d]``.
        unembed: From last states to logits.

    Returns:
        float32 ``[P, 2]``, see :attr:`LMMStates.likelihood`.
    """
    tokens, _ = phrase_entries(item.phrase_tokens, item.record_id)
    logits = unembed(states[(tokens - item.prefix_length).to(states.device)])
    own = token_log_probs(logits, item.input_ids[tokens].to(logits.device))
    return torch.stack([own, token_log_probs(logits, logits.argmax(-1))], dim=1)


def split_attention(stack: Tensor, inputs: Sequence[LMMInputs], places: PhraseRows) -> list[Tensor]:
    """Distributes the attention rows to their samples and lays them out as maps.

    Args:
        stack: From a row tap, ``[R, K, C, N]`` float32; image tokens level after level.
        inputs: The samples.
        places: Of the batch.

    Returns:
        Per sample ``[K_i, levels * C, rows, cols]`` on its output grid: coarser levels resized bilinearly,
        first.
    """
    maps = []
    for item, (row, _, phrases) in zip(inputs, places.row_slices, strict=True):
        num_columns = sum(level.rows * level.cols for level in item.grid.levels)
        maps.append(attention_maps(stack[row, phrases, :, :num_columns], item.grid))
    return maps


def attention_maps(rows: Tensor, grid: PatchGrid) -> Tensor:
    """Lays merged attention rows out as maps.

    Args:
        rows: ``[K, C, N]`` float32; image tokens level after level.
        grid: Geometry of these tokens.

    Returns:
        ``[K, levels * C, rows, cols]`` on the output grid: coarser levels resized bilinearly, first.
    """
    parts = rows.split([level.rows * level.cols for level in grid.levels], dim=-1)
    maps = [
        part.unflatten(-1, (level.rows, level.cols)) for part, level in zip(parts, grid.levels, strict=True)
    ]
    *coarse, fine = (maps[index] for index in grid.stacked)
    return torch.cat([*(_resize(level, grid.output_grid) for level in coarse), fine], dim=1)


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    with torch.autocast(maps.device.type, enabled=False):
        return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
