"""Tokens added to a language model: rows of their own beside its tables, which stay as they are.

A table that is made larger would be trained as a whole, and the untouched model would answer over more tokens than it
had. Here the new rows are parameters of their own, called ``....added_rows``, and without them
(:func:`added_tokens_off`) the tables give what they gave, bit for bit. Tokens that the model has may have such rows as
well, in the place of the table's: the output rows of words that it was never taught to write are all but the same, and
LoRA moves no rows.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from flmm_detseg.errors import ConfigError
from flmm_detseg.utils.values import FieldError, check_text

_TRAIN = ("rows", "tables")
# Rows that the initial value is taken from, evenly spread; all of a small table.
_SAMPLED = 4096
# Of the columns' standard deviation: enough to make two tokens different.
_NOISE = 0.02


@dataclass(frozen=True)
class AddedTokens:
    """Config of tokens that are added to an LMM.

    Attributes:
        tokens: Their texts, such as ``("[SEG]",)``.
        train: ``"rows"``: only their rows are trained, beside LoRA where there is some; ``"tables"``: the input and
            output tables of all tokens too (the original LMM is lost then).
        words: Tokens that the LMM has, as its tokenizer spells them, whose rows are trained as well; the table's own
            stay, and are used without the added tokens. They begin as the table has them.

    Raises:
        ConfigError: A text that cannot be a token, one twice, or an unknown ``train``.
    """

    tokens: tuple[str, ...]
    train: str = "rows"
    words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value in (("`added_tokens`", self.tokens), ("`added_tokens.words`", self.words)):
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise ConfigError(f"{name} is {value!r}; a list of texts is needed, such as ['[SEG]']")
        if not self.tokens:
            raise ConfigError("`added_tokens` is empty; a list of texts is needed, such as ['[SEG]']")
        object.__setattr__(self, "tokens", tuple(self.tokens))
        object.__setattr__(self, "words", tuple(self.words))
        for token in (*self.tokens, *self.words):
            try:
                check_text(token, "added token")
            except FieldError as error:
                raise ConfigError(str(error)) from error
            if not token or any(character.isspace() for character in token):
                raise ConfigError(
                    f"added token {token!r}: a text without white space is needed, such as '[SEG]'"
                )
        if len({*self.tokens, *self.words}) < len(self.tokens) + len(self.words):
            raise ConfigError(f"`added_tokens` names a token twice: {[*self.tokens, *self.words]}")
        if self.train not in _TRAIN:
            raise ConfigError(f"`added_tokens` has train={self.train!r}; choose one of {', '.join(_TRAIN)}")

    @classmethod
    def from_config(cls, config: Sequence[str] | Mapping[str, Any] | None) -> AddedTokens | None:
        """From a list of texts, or from a dict of this class's fields; None or an empty list: no tokens."""
        if not config:
            return None
        if not isinstance(config, Mapping):
            return cls(config)  # type: ignore[arg-type]  # any sequence becomes a tuple there
        known = [item.name for item in fields(cls)]
        if unknown := sorted(set(config) - set(known)):
            raise ConfigError(f"`added_tokens` has unknown keys {unknown}; known: {known}")
        if "tokens" not in config:
            raise ConfigError("`added_tokens` has no `tokens`")
        return cls(**config)


def is_added(parameter_name: str) -> bool:
    """Whether a parameter, by its full name, holds rows of added tokens."""
    return parameter_name.rpartition(".")[2] == "added_rows"


class GrownEmbedding(nn.Module):
    """An input table with further rows.

    Args:
        base: The model's own table; becomes ``base_layer``.
        ids: Of the added tokens, after the table or (where it has rows to spare) within it, then of words that the
            model has.
        rows: float32 ``[n, d]``, their initial rows. While the tokens are off, ids after the table are read as these,
            and ids within it as the table has them: the model may have generated such an id itself.
    """

    initial_rows: Tensor

    def __init__(self, base: nn.Embedding, ids: Sequence[int], rows: Tensor) -> None:
        super().__init__()
        self.base_layer = base
        self.ids = tuple(ids)
        self.added_rows = nn.Parameter(rows.clone())
        self.register_buffer("initial_rows", rows.clone(), persistent=False)
        self.active = True

    @property
    def weight(self) -> Tensor:
        """The model's own table."""
        return self.base_layer.weight

    def scaled_rows(self) -> Tensor:
        """The rows as the table hands them out, ``[n, d]`` in its dtype; some models scale it."""
        rows = (self.added_rows if self.active else self.initial_rows).to(self.weight.dtype)
        scale = getattr(self.base_layer, "embed_scale", None)
        if scale is None:
            return rows
        return rows * (scale.to(rows.dtype) if isinstance(scale, Tensor) else scale)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Args: int64 ``[...]``. Returns ``[..., d]``."""
        known = torch.tensor(self.ids, device=input_ids.device)
        matches = input_ids[..., None] == known
        added = matches.any(-1)
        if not self.active:
            added &= input_ids >= len(self.weight)
        embeds = self.base_layer(input_ids.masked_fill(added, 0))
        # Without a graph to the rows: a batch without added tokens must not pay for one through the whole decoder.
        if not added.is_meta and not added.any():
            return embeds
        return torch.where(added[..., None], self.scaled_rows()[matches.int().argmax(-1)], embeds)


class GrownUnembedding(nn.Module):
    """An output table with further rows; without them its output is unchanged.

    Args:
        base: From states to logits; becomes ``base_layer``.
        ids: See :class:`GrownEmbedding`.
        rows: float32 ``[n, d]``, their initial rows; or the input table whose rows these are (tied tables).
    """

    def __init__(self, base: nn.Linear, ids: Sequence[int], rows: Tensor | GrownEmbedding) -> None:
        super().__init__()
        self.base_layer = base
        self.ids = tuple(ids)
        # In a tuple, so that it is not registered as a submodule here as well.
        self._tied = (rows,) if isinstance(rows, GrownEmbedding) else ()
        if isinstance(rows, Tensor):
            self.added_rows = nn.Parameter(rows.clone())
        self.active = True

    @property
    def weight(self) -> Tensor:
        """The model's own table."""
        return self.base_layer.weight

    @property
    def rows(self) -> nn.Parameter:
        """float32 ``[n, d]``."""
        return self._tied[0].added_rows if self._tied else self.added_rows

    def forward(self, states: Tensor) -> Tensor:
        """Args: ``[..., d]``. Returns ``[..., V]``, V with the added tokens unless they are off."""
        logits = self.base_layer(states)
        if not self.active:
            return logits
        added = nn.functional.linear(states, self.rows.to(states.dtype))
        missing = max(self.ids) + 1 - logits.shape[-1]
        if missing > 0:
            logits = nn.functional.pad(logits, (0, missing), value=-torch.inf)
        places = torch.tensor(self.ids, device=logits.device)
        return logits.index_copy(-1, places, added.to(logits.dtype))


def grow(
    model: PreTrainedModel,
    settings: AddedTokens,
    ids: Sequence[int],
    known: int,
    word_ids: Sequence[int] = (),
) -> None:
    """Gives a model rows for added tokens, in place; what else is trained stays as it is.

    Each row begins as the mean of the table plus a little noise, which depends on the token's text alone; that of a
    word as the table has it.

    Args:
        model: The transformers model.
        settings: The tokens, and what is trained.
        ids: Their ids.
        known: Tokens that the tokenizer had before: rows of the table beyond are unused.
        word_ids: Ids of the words whose rows are trained as well.

    Raises:
        ConfigError: There are such words, and the output table has a bias, which their rows would not have.
    """
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if word_ids and getattr(head, "bias", None) is not None:
        raise ConfigError(
            "`added_tokens.words`: the output table of this LMM has a bias; leave the words out"
        )
    tied = head.weight is table.weight

    def rows_of(weight: Tensor) -> Tensor:
        new = _initial_rows(weight, settings.tokens, known)
        if weight.is_meta:
            return torch.empty(len(ids) + len(word_ids), weight.shape[1], device="meta")
        return torch.cat([new, weight.detach()[list(word_ids)].float()])

    every = [*ids, *word_ids]
    embedding = GrownEmbedding(table, every, rows_of(table.weight))
    model.set_input_embeddings(embedding)
    model.set_output_embeddings(GrownUnembedding(head, every, embedding if tied else rows_of(head.weight)))
    if settings.train == "tables":
        table.weight.requires_grad_(True)
        head.weight.requires_grad_(True)


@torch.no_grad()
def _initial_rows(table: Tensor, tokens: Sequence[str], known: int) -> Tensor:
    """float32 ``[n, d]``."""
    if table.is_meta:
        return torch.empty(len(tokens), table.shape[1], device="meta")
    seen = table[:known]
    sample = seen[:: max(1, len(seen) // _SAMPLED)].float()
    rows = []
    for token in tokens:
        generator = torch.Generator().manual_seed(zlib.crc32(token.encode()))
        noise = torch.randn(table.shape[1], generator=generator).to(table.device)
        rows.append(sample.mean(0) + _NOISE * sample.std(0) * noise)
    return torch.stack(rows)


def grown_tables(model: nn.Module) -> list[GrownEmbedding | GrownUnembedding]:
    """The tables with added tokens of a model; empty where it has none."""
    return [child for child in model.modules() if isinstance(child, GrownEmbedding | GrownUnembedding)]


@contextmanager
def added_tokens_off(model: nn.Module) -> Iterator[None]:
    """Context in which a model's tables are its own, without logits of added tokens. May be nested; for one thread."""
    tables = grown_tables(model)
    before = [table.active for table in tables]
    try:
        for table in tables:
            table.active = False
        yield
    finally:
        for table, active in zip(tables, before, strict=True):
            table.active = active


@torch.no_grad()
def settle(model: PreTrainedModel) -> None:
    """Makes added rows part of the model's own tables permanently: an ordinary model with a larger vocabulary."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(embedding, GrownEmbedding) or not isinstance(head, GrownUnembedding):
        return
    size = max(max(embedding.ids) + 1, embedding.weight.shape[0])
    for table, rows in ((embedding, embedding.added_rows), (head, head.rows)):
        base = table.base_layer
        weight = base.weight.new_zeros(size, base.weight.shape[1])
        weight[: len(base.weight)] = base.weight
        weight[list(table.ids)] = rows.to(weight)
        if table is head and head._tied:
            base.weight = embedding.base_layer.weight
        else:
            base.weight = nn.Parameter(weight, requires_grad=False)
        bias: Tensor | None = getattr(base, "bias", None)
        if bias is not None:
            base.bias = nn.Parameter(nn.functional.pad(bias, (0, size - len(bias))), requires_grad=False)
        for name in ("num_embeddings", "out_features"):
            if hasattr(base, name):
                setattr(base, name, size)
    model.set_input_embeddings(embedding.base_layer)
    model.set_output_embeddings(head.base_layer)
    model.config.get_text_config().vocab_size = size
    model.vocab_size = size
