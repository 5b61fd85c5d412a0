"""Attention rows out of a transformers model that runs its ordinary sdpa kernels.

One attention function is registered under :data:`ROW_TAP`. It is sdpa, and where a forward pass carries a
:class:`RowTap` (keyword ``row_tap`` of the language model, handed down to every attention block) it also
computes the rows the tap wants. Without a tap it *is* sdpa, bit for bit. No state lives in modules or
globals.
"""

from __future__ import annotations

import json
import logging
import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from flmm_detseg.errors import ConfigError
from flmm_detseg.ops.rows import attention_rows, merge_rows, take_columns
from flmm_detseg.structures import HeadRanking
from flmm_detseg.utils.paths import find, is_file, places

ROW_TAP = "flmm_row_tap"
# Without autograd: most rows that exist on all keys at a time.
ROWS_PER_CALL = 256


@dataclass(frozen=True)
class RowSettings:
    """Which attention rows make up the stack.

    Attributes:
        merge: Over the tokens of a phrase: ``"mean"`` or ``"max"``.
        layers: Decoder layers, 0-based, ascending; None for all.
        heads: Query heads of each layer, 0-based, ascending; None for all; ``"top:N"`` for the best N of ``ranking``,
            whichever layers they are in.
        attention: ``"rows"``: sdpa plus the wanted rows; ``"eager"``: transformers' eager blocks with
            ``output_attentions`` (slow, for parity checks).
        ranking: File of a :class:`~flmm_detseg.structures.HeadRanking` (``flmm-detseg rank-heads`` writes it), found as
            by :func:`~flmm_detseg.utils.paths.find`; with ``"top:N"`` only.
    """

    merge: str = "mean"
    layers: Sequence[int] | None = None
    heads: Sequence[int] | str | None = None
    attention: str = "rows"
    ranking: str | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("merge", ("mean", "max")), ("attention", ("rows", "eager"))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"rows `{name}` is {getattr(self, name)!r}; allowed: {allowed}")
        if self.by_ranking:
            if self.layers is not None:
                raise ConfigError(
                    f"rows `heads`={self.heads!r} takes heads of any layer, and `layers` is {tuple(self.layers)}; "
                    "leave one of them out"
                )
            self._best(self._ranked)  # what is wrong with it shows before weights are loaded
        elif self.ranking is not None:
            raise ConfigError(
                f"rows `ranking` is {self.ranking!r}, which only `heads`='top:N' reads; leave it out"
            )
        for name in ("layers", "heads"):
            chosen = getattr(self, name)
            if chosen is None or (name == "heads" and self.by_ranking):
                continue
            try:
                chosen = tuple(operator.index(one) for one in chosen)
            except TypeError as error:
                raise ConfigError(
                    f"rows `{name}` is {chosen!r}; a list of indices from 0 is needed, or None"
                ) from error
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

    @property
    def by_ranking(self) -> bool:
        """Whether a ranking chooses the heads."""
        return isinstance(self.heads, str)

    def warn_of_other(self, lmm: str) -> None:
        """Says so where the ranking was made for an LMM of another name: its best heads need not be this one's.

        Args:
            lmm: Folder or hub name of the LMM that is read.
        """
        if not self.by_ranking or Path(self._ranked.lmm).name == Path(lmm).name:
            return
        print_log(
            f"the ranking {self.ranking} was made for {self._ranked.lmm}, this LMM is {lmm}: as many layers and heads, "
            f"perhaps not the same ones. Its own: flmm-detseg rank-heads --lmm {lmm} --phrases FILE --image-dir DIR "
            "--out FILE",
            "current",
            logging.WARNING,
        )

    @cached_property
    def _ranked(self) -> HeadRanking:
        """The ranking; its file is read once."""
        if self.ranking is None:
            raise ConfigError(
                f"rows `heads` is {self.heads!r}, which needs `ranking`: the file that flmm-detseg rank-heads writes"
            )
        path = find(self.ranking)
        if not is_file(path):
            raise ConfigError(
                f"rows `ranking`: {self.ranking} is no file ({places(self.ranking)}); flmm-detseg rank-heads writes one"
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"rows `ranking`: {path} cannot be read as JSON ({error}); write it anew by flmm-detseg rank-heads"
            ) from error
        return HeadRanking.from_dict(content, str(path))

    def _best(self, ranking: HeadRanking) -> tuple[tuple[int, int], ...]:
        word, _, count = str(self.heads).partition(":")
        if word != "top" or not (count.isascii() and count.isdecimal()):
            raise ConfigError(
                f"rows `heads` is {self.heads!r}; allowed: a list of indices, None, or 'top:N' such as 'top:16'"
            )
        try:
            return ranking.top(int(count))
        except ConfigError as error:
            raise ConfigError(f"rows `heads` is {self.heads!r}: {error}") from error

    def resolve(
        self, num_layers: int, num_heads: int, rowless: Collection[int] = ()
    ) -> tuple[tuple[int, int], ...]:
        """The chosen heads of a language model.

        Args:
            num_layers: Decoder layers.
            num_heads: Query heads of a layer.
            rowless: Decoder layers without softmax attention.

        Returns:
            ``(layer, head)``, each from 0, in the order of the stack's channels: layer ascending, within a layer head
            ascending, however a ranking orders them.

        Raises:
            ConfigError: An index is out of range, a layer has no attention rows, or the ranking is of a
                model of other sizes.
        """
        if self.by_ranking:
            self._ranked.check(num_layers, num_heads)
            pairs = sorted(self._best(self._ranked))
            _check_rows("ranking", {layer for layer, _ in pairs}, num_layers, rowless)
            return tuple(pairs)
        chosen = []
        for name, count in (("layers", num_layers), ("heads", num_heads)):
            indices = getattr(self, name)
            if indices is None:
                indices = tuple(index for index in range(count) if name == "heads" or index not in rowless)
            if indices[-1] >= count:
                raise ConfigError(f"rows `{name}` names {indices[-1]}; the language model has 0..{count - 1}")
            chosen.append(indices)
        _check_rows("layers", chosen[0], num_layers, rowless)
        return tuple((layer, head) for layer in chosen[0] for head in chosen[1])


def _check_rows(name: str, layers: Collection[int], num_layers: int, rowless: Collection[int]) -> None:
    if without := sorted(set(layers).intersection(rowless)):
        raise ConfigError(
            f"rows `{name}` names {without}; these layers of the language model have no softmax attention, so "
            f"there are no rows to read. Layers with rows: {sorted(set(range(num_layers)) - set(rowless))}"
        )


class RowTap:
    """Collects the merged attention rows of one forward pass.

    Args:
        positions: Phrase tokens among the queries of the pass, int64 ``[B, P]``, padded with 0.
        phrase_ids: Phrase of each of them, int64 ``[B, P]``, -1 for padding.
        columns: Image tokens among the keys, int64 ``[B, N]``, padded with 0; newline tokens left out.
        num_phrases: K, the most phrases of a sequence of the batch.
        heads: By layer to collect, ascending, its heads, ascending; None for all of them.
        merge: ``"mean"`` or ``"max"``.
    """

    def __init__(
        self,
        positions: Tensor,
        phrase_ids: Tensor,
        columns: Tensor,
        num_phrases: int,
        *,
        heads: Mapping[int, Sequence[int] | None],
        merge: str,
    ) -> None:
        self.positions = positions
        self.phrase_ids = phrase_ids
        self.columns = columns
        self.num_phrases = num_phrases
        # One tensor, cut: each copy to a GPU would wait for it.
        lists = [chosen or () for chosen in heads.values()]
        together = torch.tensor([head for part in lists for head in part], dtype=torch.int64)
        parts = together.to(positions.device).split([len(part) for part in lists])
        self.heads = {
            layer: None if chosen is None else part
            for (layer, chosen), part in zip(heads.items(), parts, strict=True)
        }
        self.merge = merge
        self._merged: dict[int, Tensor] | None = {}

    def collect(self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> None:
        """Computes and keeps a layer's rows; arguments as in :func:`~flmm_detseg.ops.rows.attention_rows`."""
        if layer not in self.heads:
            return
        positions = self.positions.to(query.device)
        chosen = self.heads[layer]
        heads = None if chosen is None else chosen.to(query.device)
        # Rows on all keys are large and at once cut to the image's; with autograd they stay alive anyway.
        step = max(1, positions.shape[1] if torch.is_grad_enabled() else ROWS_PER_CALL)
        cut = [
            self._cut(attention_rows(query, key, part, scaling=scaling, mask=mask, heads=heads))
            for part in positions.split(step, dim=1)
        ]
        self._keep(layer, cut[0] if len(cut) == 1 else torch.cat(cut, dim=2))

    def collect_eager(self, layer: int, attention: Tensor) -> None:
        """Cuts the rows out of a full attention matrix ``[B, H, T, T]``."""
        if layer not in self.heads:
            return
        if (heads := self.heads[layer]) is not None:
            attention = attention[:, heads.to(attention.device)]
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
            float32 ``[B, K, C, N]``; channels in the order of the layers, within a layer of its heads.
        """
        assert self._merged is not None, "handed over before"
        assert len(self._merged) == len(self.heads), "layers were not tapped"
        device = self._merged[next(iter(self.heads))].device
        stack = torch.cat([self._merged[layer].to(device) for layer in self.heads], dim=2)
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
