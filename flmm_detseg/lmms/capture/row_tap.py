"""Attention rows out of a transformers model that runs its ordinary sdpa kernels.

One attention function is registered under :data:`ROW_TAP`. It is sdpa, and where a forward pass carries a
:class:`RowTap` (keyword ``row_tap`` of the language model, handed down to every attention block) it also
computes the rows the tap wants. Without a tap it *is* sdpa, bit for bit. No state lives in modules or
globals.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from flmm_detseg.errors import ConfigError
from flmm_detseg.ops.rows import attention_rows, merge_rows, take_columns

ROW_TAP = "flmm_row_tap"
# Without autograd: most rows that exist on all keys at a time.
ROWS_PER_CALL = 256


@dataclass(frozen=True)
class RowSettings:
    """Which attention rows make up the stack.

    Attributes:
        merge: Over the tokens of a phrase: ``"mean"`` or ``"max"``.
        layers: Decoder layers, 0-based, ascending; None for all.
        heads: Query heads of each layer, 0-based, ascending; None for all.
        attention: ``"rows"``: sdpa plus the wanted rows; ``"eager"``: transformers' eager blocks with
            ``output_attentions`` (slow, for parity checks).
    """

    merge: str = "mean"
    layers: Sequence[int] | None = None
    heads: Sequence[int] | None = None
    attention: str = "rows"

    def __post_init__(self) -> None:
        for name, allowed in (("merge", ("mean", "max")), ("attention", ("rows", "eager"))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"rows `{name}` is {getattr(self, name)!r}; allowed: {allowed}")
        for name in ("layers", "heads"):
            chosen = getattr(self, name)
            if chosen is None:
                continue
            chosen = tuple(chosen)
            if not chosen or list(chosen) != sorted(set(chosen)) or chosen[0] < 0:
                raise ConfigError(
                    f"rows `{name}` is {chosen}; ascending indices from 0, without repetition, or None"
                )
            object.__setattr__(self, name, chosen)

    @classmethod
    def from_dict(cls, settings: dict[str, Any] | None) -> RowSettings:
        """Settings from a config.

        Args:
            settings: ``rows`` of a config; None takes the defaults.

        Returns:
            The settings, checked.

        Raises:
            ConfigError: Names an unknown key or a value that cannot be used.
        """
        settings = dict(settings or {})
        known = [item.name for item in fields(cls)]
        if unknown := sorted(set(settings) - set(known)):
            raise ConfigError(f"rows has unknown keys {unknown}; known: {known}")
        return cls(**settings)

    def resolve(
        self, num_layers: int, num_heads: int, rowless: Collection[int] = ()
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The chosen layers and heads of a language model.

        Args:
            num_layers: Decoder layers.
            num_heads: Query heads of a layer.
            rowless: Decoder layers without softmax attention.

        Returns:
            Indices of layers and heads, ascending, from 0.

        Raises:
            ConfigError: An index is out of range, or a layer has no attention rows.
        """
        chosen = []
        for name, count in (("layers", num_layers), ("heads", num_heads)):
            indices = getattr(self, name)
            if indices is None:
                indices = tuple(index for index in range(count) if name == "heads" or index not in rowless)
            if indices[-1] >= count:
                raise ConfigError(f"rows `{name}` names {indices[-1]}; the language model has 0..{count - 1}")
            chosen.append(indices)
        if without := sorted(set(chosen[0]).intersection(rowless)):
            raise ConfigError(
                f"rows `layers` names {without}; these layers of the language model have no softmax attention, so "
                f"there are no rows to read. Layers with rows: {sorted(set(range(num_layers)) - set(rowless))}"
            )
        return chosen[0], chosen[1]


class RowTap:
    """Collects the merged attention rows of one forward pass.

    Args:
        positions: Phrase tokens among the queries of the pass, int64 ``[B, P]``, padded with 0.
        phrase_ids: Phrase of each of them, int64 ``[B, P]``, -1 for padding.
        columns: Image tokens among the keys, int64 ``[B, N]``, padded with 0; newline tokens left out.
        num_phrases: K, the most phrases of a sequence of the batch.
        layers: Layers to collect.
        heads: Heads to collect, None for all.
        merge: ``"mean"`` or ``"max"``.
    """

    def __init__(
        self,
        positions: Tensor,
        phrase_ids: Tensor,
        columns: Tensor,
        num_phrases: int,
        *,
        layers: Sequence[int],
        heads: Sequence[int] | None,
        merge: str,
    ) -> None:
        self.positions = positions
        self.phrase_ids = phrase_ids
        self.columns = columns
        self.num_phrases = num_phrases
        self.layers = tuple(layers)
        self.heads = None if heads is None else torch.tensor(heads, device=positions.device)
        self.merge = merge
        self._merged: dict[int, Tensor] | None = {}

    def collect(self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> None:
        """Computes and keeps a layer's rows; arguments as in :func:`~flmm_detseg.ops.rows.attention_rows`."""
        if layer not in self.layers:
            return
        positions = self.positions.to(query.device)
        heads = None if self.heads is None else self.heads.to(query.device)
        # Rows on all keys are large and at once cut to the image's; with autograd they stay alive anyway.
        step = max(1, positions.shape[1] if torch.is_grad_enabled() else ROWS_PER_CALL)
        cut = [
            self._cut(attention_rows(query, key, part, scaling=scaling, mask=mask, heads=heads))
            for part in positions.split(step, dim=1)
        ]
        self._keep(layer, cut[0] if len(cut) == 1 else torch.cat(cut, dim=2))

    def collect_eager(self, layer: int, attention: Tensor) -> None:
        """Cuts the rows out of a full attention matrix ``[B, H, T, T]``."""
        if layer not in self.layers:
            return
        if self.heads is not None:
            attention = attention[:, self.heads.to(attention.device)]
        index = self.positions.to(attention.device)[:, None, :, None]
        rows = attention.gather(2, index.expand(-1, attention.shape[1], -1, attention.shape[3]))
        self._keep(layer, self._cut(rows))

    def _cut(self, rows: Tensor) -> Tensor:
        return take_columns(rows, self.columns.to(rows.device))

    def _keep(self, layer: int, rows: Tensor) -> None:
        merged = merge_rows(rows, self.phrase_ids.to(rows.device), self.num_phrases, how=self.merge)
        # Gradient checkpointing repeats the block in the backward pass: the same computation, but nothing to
        # keep.
        if self._merged is not None:
            self._merged[layer] = merged

    def finish(self) -> Tensor:
        """Hands over the rows, once.

        Returns:
            float32 ``[B, K, C, N]``, channel = layer * heads + head over the chosen ones.
        """
        assert self._merged is not None, "handed over before"
        assert len(self._merged) == len(self.layers), "layers were not tapped"
        device = self._merged[self.layers[0]].device
        stack = torch.cat([self._merged[layer].to(device) for layer in self.layers], dim=2)
        self._merged = None
        return stack


def row_tap_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    row_tap: RowTap | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function for transformers' :class:`AttentionInterface`; ``kwargs`` are that interface's."""
    if row_tap is not None:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        layer = cast(int, module.layer_idx)  # every attention of transformers has it
        row_tap.collect(layer, query, key, attention_mask, scale)
    return sdpa_attention_forward(
        module,
        query,
        key,
        value,
        attention_mask,
        dropout=dropout,
        scaling=scaling,
        is_causal=is_causal,
        **kwargs,
    )


AttentionInterface.register(ROW_TAP, row_tap_attention)
AttentionMaskInterface.register(ROW_TAP, sdpa_mask)
