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
import torch.nn.functional as F
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
        best_log_prob: The same of the likeliest token then; another one where the model's own rules forbade that.
    """

    token_id: int
    log_prob: Tensor
    best_log_prob: Tensor


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
        # Per sequence of a batch, how many of its keys, on the left, are padding.
        self._padding: Tensor | None = None
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
        if self._padding is not None:
            assert isinstance(mask, Tensor), "after joined sequences comes a token of each"
            places = torch.arange(mask.shape[-1], device=mask.device)
            mask = mask & (places >= self._padding.to(mask.device)[:, None])
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

    @classmethod
    def join(cls, decoders: Sequence[PrefixDecoder]) -> PrefixDecoder:
        """One decoder for sequences that are continued together.

        Keys and values of shorter ones are padded on the left, where no token looks: all grow on the right.

        Args:
            decoders: Of one model, each after a sequence of its own, with plain keys and values.

        Returns:
            A decoder of as many sequences. The given ones are not changed.
        """
        lengths = torch.tensor([decoder.length for decoder in decoders])
        padding = int(lengths.max()) - lengths
        sides = []
        for parts in zip(*(decoder.snapshot() for decoder in decoders), strict=True):
            layers = zip(*parts, strict=True)
            sides.append(
                [
                    torch.cat(
                        [F.pad(part, (0, 0, int(pad), 0)) for part, pad in zip(layer, padding, strict=True)]
                    )
                    for layer in layers
                ]
            )
        first = decoders[0]
        joined = cls(
            first.language_model, first.output_embeddings, *sides, windows=first.windows, axes=first.axes
        )
        joined._padding = padding if padding.any() else None
        return joined

    def _keep(self, places: Sequence[int]) -> None:
        """Goes on with these sequences of the batch alone."""
        chosen = torch.tensor(places)
        sides = self.snapshot()
        self._cache = DynamicCache()
        for layer, (keys, values) in enumerate(zip(*sides, strict=True)):
            self._cache.update(keys[chosen.to(keys.device)], values[chosen.to(values.device)], layer)
        if self._padding is not None:
            self._padding = self._padding[chosen]

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
        """Greedy decoding of one sequence, see :meth:`decode_together`.

        Args:
            last_state: Last hidden state of the prompt ``[1, 1, d]``.
            next_position: Rotary position of the first generated token.
            end_ids: Tokens that end the answer; they are part of it.
            max_new_tokens: Longest answer, at least 1.
            rows: Collects the rows of the tokens; None for none.
            rules: Of the model's generation config.

        Yields:
            Each token as soon as it is chosen.
        """
        for _, token in self.decode_together(
            last_state,
            [next_position],
            end_ids=end_ids,
            max_new_tokens=[max_new_tokens],
            rows=None if rows is None else [rows],
            rules=[rules],
        ):
            yield token

    @torch.no_grad()
    def decode_together(
        self,
        last_states: Tensor,
        next_positions: Sequence[int],
        *,
        end_ids: Collection[int],
        max_new_tokens: Sequence[int],
        rows: Sequence[AnswerRows] | None = None,
        rules: Sequence[TokenRules | None] | None = None,
    ) -> Iterator[tuple[int, DecodedToken]]:
        """Greedy decoding of all sequences in step, each token handed out as soon as it is chosen.

        Answers that have ended are left out of later steps.

        Args:
            last_states: Last hidden states of the prompts ``[B, 1, d]``.
            next_positions: Per sequence the rotary position of the first generated token.
            end_ids: Tokens that end an answer; they are part of it.
            max_new_tokens: Per sequence the longest answer, at least 1.
            rows: Per sequence, collects the rows of the tokens in the step in which each is the query, so the last
                token gets a step of its own; None for none. Attention rows are those of one sequence.
            rules: Per sequence, of the model's generation config; log-probabilities do not know them. None for none.

        Yields:
            Number of the sequence, and its next token.
        """
        embed = self.language_model.get_input_embeddings()
        active = list(range(len(last_states)))
        counts = [0] * len(active)
        for number, answer_rows in enumerate(rows or ()):
            if answer_rows.keep_last:
                answer_rows.last.append(last_states[number, 0])
        while True:
            logits = self.output_embeddings(last_states)[:, 0].float()
            tokens, going_on = [], []
            for place, number in enumerate(active):
                own, rule = logits[place : place + 1], None if rules is None else rules[number]
                token = own.argmax(-1) if rule is None else rule.choose(own)
                token_id = int(token)
                counts[number] += 1
                chosen = token_log_probs(own, token)[0].cpu()
                best = chosen if rule is None else token_log_probs(own, own.argmax(-1))[0].cpu()
                yield number, DecodedToken(token_id, chosen, best)
                stopped = rule is not None and rule.stopped
                tokens.append(token)
                if not (token_id in end_ids or counts[number] == max_new_tokens[number] or stopped):
                    going_on.append(place)
            if not going_on and rows is None:
                return
            reached = [next_positions[number] + counts[number] - 1 for number in active]
            positions = torch.tensor(reached)[:, None].expand(self.axes, -1, -1)
            positions = positions[0] if self.axes == 1 else positions
            last_states = self._step(
                embed(torch.stack(tokens)),
                positions,
                [] if rows is None else [rows[number] for number in active],
            )
            if not going_on:
                return
            if len(going_on) < len(active):
                self._keep(going_on)
                last_states = last_states[going_on]
                active = [active[place] for place in going_on]

    def _step(self, embeds: Tensor, positions: Tensor, rows: Sequence[AnswerRows]) -> Tensor:
        if not rows:
            return self.feed(embeds, positions)
        tap = rows[0].make_tap() if len(rows) == 1 and rows[0].make_tap is not None else None
        query = torch.zeros(len(rows), 1, dtype=torch.int64, device=embeds.device)
        layers = rows[0].hidden_layers
        with hidden_rows(self.language_model, query, layers) if layers else nullcontext() as hidden:
            states = self.feed(embeds, positions, tap)
        if tap is not None:
            # The tap hands over float32; what it rounded from is the model's dtype.
            rows[0].attention.append(tap.finish()[0, 0].to(embeds.dtype))
        for place, answer_rows in enumerate(rows):
            if hidden is not None:
                answer_rows.hidden.append(torch.stack([states[place, 0] for states in hidden]))
            if answer_rows.keep_last:
                answer_rows.last.append(states[place, 0])
        return states


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
