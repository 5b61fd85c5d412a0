"""Continuing a decoder from stored keys and values. The only file that knows transformers' cache classes for it.

Stored tensors are never written to: transformers' ``DynamicCache`` makes new tensors when it grows, and nothing else is
used of it than an empty one, ``update`` and its length, which every version has.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel

from flmm_detseg.language import token_log_probs
from flmm_detseg.lmms.capture.decoder_pass import Sequences, decoder_mask, run_decoder
from flmm_detseg.lmms.capture.per_sample import hidden_rows
from flmm_detseg.lmms.capture.row_tap import RowTap
from flmm_detseg.lmms.capture.token_rules import TokenRules


@dataclass(frozen=True)
class DecodedToken:
    """One generated token.

    Attributes:
        token_id: The token.
        log_prob: float32 scalar, CPU: its log-probability when it was chosen.
    """

    token_id: int
    log_prob: Tensor


class PrefixDecoder:
    """A decoder of transformers somewhere within one sequence, or within several that are equally long so far.

    Args:
        language_model: Decoder (``inputs_embeds``, ``position_ids``, ``past_key_values``).
        output_embeddings: From its last state to logits.
        keys: Per layer ``[B, kv_heads, P, head_dim]`` of the tokens so far, after the rotary embedding; None to start
            from nothing. One prefix of B sequences may come expanded.
        values: As ``keys``.
        windows: See :class:`~flmm_detseg.lmms.family.LMMFacts`.
        axes: Of the rotary positions of generated tokens; all of them count on alike.
        cache: An empty cache of the model's own kind; None for keys and values of every layer.
    """

    def __init__(
        self,
        language_model: PreTrainedModel,
        output_embeddings: nn.Module,
        keys: Sequence[Tensor] | None = None,
        values: Sequence[Tensor] | None = None,
        *,
        windows: Mapping[str, int | None] | None = None,
        axes: int = 1,
        cache: Cache | None = None,
    ) -> None:
        self.language_model = language_model
        self.output_embeddings = output_embeddings
        self.windows = windows or {}
        self.axes = axes
        self._cache = DynamicCache() if cache is None else cache
        self._length = 0
        if keys is not None and values is not None:
            device = next(language_model.parameters()).device
            for layer, (key, value) in enumerate(zip(keys, values, strict=True)):
                self._cache.update(key.to(device), value.to(device), layer)
            self._length = keys[0].shape[-2]

    @property
    def length(self) -> int:
        """Tokens so far."""
        return self._length

    def feed(
        self,
        embeds: Tensor,
        position_ids: Tensor,
        tap: RowTap | None = None,
        *,
        blocks: Tensor | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Runs more tokens of the sequence.

        Args:
            embeds: ``[B, T, d]``; shorter sequences padded on the right, where no token of theirs looks. Padding
                stays in the keys: :meth:`split` before feeding more.
            position_ids: int64 ``[T]``, ``[B, T]`` where they differ, or ``[A, B, T]`` with several axes.
            tap: Wanted attention rows of these tokens; needs the row tap's attention function.
            blocks: See :class:`~flmm_detseg.lmms.capture.decoder_pass.Sequences`; at the beginning only.
            arguments: Further arguments of the decoder.

        Returns:
            Last hidden states ``[B, T, d]``.
        """
        if position_ids.ndim == 1:
            position_ids = position_ids[None]
        sequences = Sequences(embeds, position_ids, blocks=blocks, arguments=arguments or {})
        mask = decoder_mask(sequences, self.windows, past=self._length)
        output = run_decoder(self.language_model, sequences, mask, tap=tap, past=self._cache)
        self._length += embeds.shape[1]
        return output.last_hidden_state

    def snapshot(self) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values so far, per layer; tensors of their own that no later :meth:`feed` changes."""
        layers = self._cache.layers
        return [layer.keys for layer in layers], [layer.values for layer in layers]

    def split(self, lengths: Sequence[int]) -> list[PrefixDecoder]:
        """A decoder for each sequence of a batch.

        Args:
            lengths: Tokens of each sequence, padding left out.

        Returns:
            Per sequence a decoder of its own, ``[1, kv_heads, length, head_dim]`` keys and values per layer.
        """
        sides = self.snapshot()
        return [
            PrefixDecoder(
                self.language_model,
                self.output_embeddings,
                *([tensor[row : row + 1, :, :length] for tensor in side] for side in sides),
                windows=self.windows,
                axes=self.axes,
            )
            for row, length in enumerate(lengths)
        ]

    @torch.no_grad()
    def decode(
        self,
        last_state: Tensor,
        next_position: int,
        *,
        end_ids: Collection[int],
        max_new_tokens: int,
        rows: AnswerRows | None = None,
        rules: TokenRules | None = None,
    ) -> Iterator[DecodedToken]:
        """Greedy decoding, token by token, each handed out as soon as it is chosen.

        Args:
            last_state: Last hidden state of the prompt ``[1, 1, d]``.
            next_position: Rotary position of the first generated token.
            end_ids: Tokens that end the answer; they are part of it.
            max_new_tokens: Longest answer, at least 1.
            rows: Collects the rows of the tokens in the step in which each is the query, so the last token gets a
                step of its own; None for none.
            rules: Of the model's generation config; log-probabilities do not know them.
        """
        embed = self.language_model.get_input_embeddings()
        count = 0
        if rows is not None and rows.keep_last:
            rows.last.append(last_state[0, 0])
        while True:
            logits = self.output_embeddings(last_state)[:, 0].float()
            token = logits.argmax(-1) if rules is None else rules.choose(logits)
            token_id = int(token)
            count += 1
            yield DecodedToken(token_id, token_log_probs(logits, token)[0].cpu())
            ended = token_id in end_ids or count == max_new_tokens or (rules is not None and rules.stopped)
            if ended and rows is None:
                return
            position = torch.full((self.axes, 1, 1), next_position + count - 1)
            position = position[0] if self.axes == 1 else position
            last_state = self._step(embed(token[None]), position, rows)
            if rows is not None and rows.keep_last:
                rows.last.append(last_state[0, 0])
            if ended:
                return

    def _step(self, embeds: Tensor, position: Tensor, rows: AnswerRows | None) -> Tensor:
        if rows is None:
            return self.feed(embeds, position)
        tap = rows.make_tap() if rows.make_tap is not None else None
        query = torch.zeros(1, 1, dtype=torch.int64, device=embeds.device)
        layers = rows.hidden_layers
        with hidden_rows(self.language_model, query, layers) if layers else nullcontext() as hidden:
            state = self.feed(embeds, position, tap)
        if tap is not None:
            # The tap hands over float32; what it rounded from is the model's dtype.
            rows.attention.append(tap.finish()[0, 0].to(embeds.dtype))
        if hidden is not None:
            rows.hidden.append(torch.cat(hidden)[:, 0])
        return state


class AnswerRows:
    """Rows of generated tokens, filled by :meth:`PrefixDecoder.decode`.

    Args:
        make_tap: Makes a new tap on query 0 for each step; None to keep no attention.
        hidden_layers: Decoder layers, 1..L, ascending, whose hidden rows are kept.
        keep_last: Keep the last states, that of the prompt's last token first.
    """

    def __init__(
        self,
        make_tap: Callable[[], RowTap] | None,
        hidden_layers: tuple[int, ...] = (),
        keep_last: bool = False,
    ) -> None:
        self.make_tap = make_tap
        self.hidden_layers = hidden_layers
        self.keep_last = keep_last
        self.attention: list[Tensor] = []
        self.hidden: list[Tensor] = []
        self.last: list[Tensor] = []

    @property
    def wanted(self) -> bool:
        """Whether anything is kept."""
        return self.make_tap is not None or bool(self.hidden_layers) or self.keep_last

    def stacked(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """``[C, A, N]``, ``[n, A, d]`` and ``[A + 1, d]``, None for what was not kept."""
        return (
            torch.stack(self.attention, dim=1) if self.attention else None,
            torch.stack(self.hidden, dim=1) if self.hidden else None,
            torch.stack(self.last) if self.last else None,
        )
