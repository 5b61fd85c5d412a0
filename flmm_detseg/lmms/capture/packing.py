"""Several texts about one image in one sequence.

Samples with the same image are packed into one row: what all of their prompts begin with (the image, and the whole
prompt where it is the same) once, then one rest after the other. A mask lets every rest see the shared prefix and
itself only, and positions continue after the prefix for each of them, so each token gets what it would get alone.
Nothing is cached or copied, the pass stays differentiable, and gradient checkpointing works as usual.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from flmm_detseg.errors import PhraseWithoutTokensError
from flmm_detseg.structures import LMMInputs


@dataclass(frozen=True)
class PackedBatch:
    """Rows of the language model's batch, padded on the right (CPU tensors).

    Padding on the right needs no mask under causal attention: no real token attends to it.

    Attributes:
        input_ids: int64 ``[R, T]``, padded with 0.
        image_mask: bool ``[R, T]``.
        members: Per row the samples in it.
        token_index: Per sample the place of each of its tokens in its row, int64 ``[T_i]``.
        position_ids: int64 ``[R, T]``, or ``[A, R, T]`` where the LMM has several axes; None where they are simply
            0..T-1.
        visible: bool ``[R, 1, T, T]``, True where a query (third axis) may look; None for plain causal
            attention.
    """

    input_ids: Tensor
    image_mask: Tensor
    members: list[list[int]]
    token_index: list[Tensor]
    position_ids: Tensor | None
    visible: Tensor | None


@dataclass(frozen=True)
class PhraseRows:
    """Where the phrase tokens of a packed batch are (CPU tensors).

    Attributes:
        positions: int64 ``[R, P]``, padded with 0: one entry per token of each phrase, sample after sample.
        phrase_ids: int64 ``[R, P]``: phrase counted over all samples of the row, -1 for padding.
        columns: Image tokens without newlines, int64 ``[R, N]``, padded with 0.
        num_phrases: The most phrases of a row.
        row_slices: Per sample ``(row, entries, phrases)``: its row and its parts of the P and K axes.
        sample_phrase_ids: Per sample the phrase of each of its entries, counted within the sample.
    """

    positions: Tensor
    phrase_ids: Tensor
    columns: Tensor
    num_phrases: int
    row_slices: list[tuple[int, slice, slice]]
    sample_phrase_ids: list[Tensor]


def distinct_images(inputs: Sequence[LMMInputs], image_keys: Sequence[str | None] | None) -> list[int]:
    """Finds samples that show the same images.

    A key alone is not trusted: an augmented copy may carry it too, so the pixels must be equal.

    Args:
        inputs: Prepared samples.
        image_keys: Per sample a key or None, which is never equal to another.

    Returns:
        Per sample the first sample with the same images (itself, if none).
    """
    first: dict[str, list[int]] = {}
    owners = []
    for index, key in enumerate(image_keys or [None] * len(inputs)):
        candidates = first.setdefault(key, []) if key is not None else []
        same = (
            other
            for other in candidates
            if len(inputs[other].images) == len(inputs[index].images)
            and all(a.shows_same(b) for a, b in zip(inputs[other].images, inputs[index].images))
        )
        owner = next(same, index)
        if owner == index:
            candidates.append(index)
        owners.append(owner)
    return owners


def pack(inputs: Sequence[LMMInputs], owners: Sequence[int] | None) -> PackedBatch:
    """Packs samples into rows.

    Args:
        inputs: Prepared samples.
        owners: From :func:`distinct_images`: samples with equal owner, and equal text before the image, share a row.
            None: one row per sample.

    Returns:
        The batch; rows in order of their first sample.
    """
    sharing: dict[tuple[int, bytes], list[int]] = {}
    for index, item in enumerate(inputs):
        beginning = item.input_ids[: int(item.image_mask.nonzero()[-1]) + 1].numpy().tobytes()
        key = (index, b"") if owners is None else (owners[index], beginning)
        sharing.setdefault(key, []).append(index)

    members = list(sharing.values())
    starts = [_common_length([inputs[member] for member in row]) for row in members]
    rows = lay_out(
        [
            SharedRow(
                torch.arange(start),
                _positions(inputs[row[0]])[:, :start],
                [_positions(inputs[member])[:, start:] for member in row],
            )
            for row, start in zip(members, starts, strict=True)
        ],
        members,
    )
    ids, images = [], []
    for row, start in zip(members, starts, strict=True):
        rests = [inputs[member].input_ids[start:] for member in row]
        ids.append(torch.cat([inputs[row[0]].input_ids[:start], *rests]))
        images.append(pad(inputs[row[0]].image_mask[:start], (0, sum(map(len, rests)))))
    own = any(item.position_ids is not None for item in inputs)
    return PackedBatch(
        input_ids=pad_sequence(ids, batch_first=True),
        image_mask=pad_sequence(images, batch_first=True),
        members=members,
        token_index=rows.token_index,
        position_ids=rows.padded_positions() if own or rows.visible is not None else None,
        visible=rows.visible,
    )


@dataclass(frozen=True)
class SharedRow:
    """What the samples of one row share, and how each goes on.

    Attributes:
        index: Place in the row of each token that all samples begin with, int64 ``[S]``.
        positions: Rotary positions of what the row begins with, int64 ``[A, P]``.
        rests: Per sample the rotary positions of its further tokens, int64 ``[A, n]``.
    """

    index: Tensor
    positions: Tensor
    rests: list[Tensor]


@dataclass(frozen=True)
class RowLayout:
    """Where everything of a packed batch is (CPU tensors).

    Attributes:
        positions: Per row the rotary positions, int64 ``[A, T_r]``.
        token_index: Per sample the place of each of its tokens in its row, int64 ``[T_i]``.
        visible: bool ``[R, 1, T, T]``, True where a query (third axis) may look; None for plain causal attention.
    """

    positions: list[Tensor]
    token_index: list[Tensor]
    visible: Tensor | None

    def padded_positions(self) -> Tensor:
        """Positions padded with 0: int64 ``[R, T]``, or ``[A, R, T]`` with several axes."""
        padded = pad_sequence([row.T for row in self.positions], batch_first=True).permute(2, 0, 1)
        return padded[0] if len(padded) == 1 else padded


def lay_out(rows: Sequence[SharedRow], members: Sequence[Sequence[int]]) -> RowLayout:
    """Lays rows out: what is shared, then one rest after the other, each of which sees the shared part and itself.

    Args:
        rows: What is in them.
        members: Per row the samples in it, as in ``rests``.

    Returns:
        Positions, place of every sample's tokens, and what sees what (None where nothing is shared).
    """
    token_index: list[Tensor] = [torch.empty(0)] * sum(map(len, members))
    positions, segments = [], []
    for row, samples in zip(rows, members, strict=True):
        end = row.positions.shape[1]
        owner = [torch.zeros(end, dtype=torch.int64)]
        for number, (sample, rest) in enumerate(zip(samples, row.rests, strict=True), start=1):
            size = rest.shape[1]
            token_index[sample] = torch.cat([row.index, end + torch.arange(size)])
            owner.append(torch.full((size,), number))
            end += size
        positions.append(torch.cat([row.positions, *row.rests], dim=1))
        segments.append(torch.cat(owner))
    shared = any(len(samples) > 1 for samples in members)
    visible = visible_rows(pad_sequence(segments, batch_first=True, padding_value=-1)) if shared else None
    return RowLayout(positions, token_index, visible)


def _positions(item: LMMInputs) -> Tensor:
    """Rotary positions, int64 ``[A, T]``."""
    return torch.arange(len(item.input_ids))[None] if item.position_ids is None else item.position_ids


def _common_length(members: Sequence[LMMInputs]) -> int:
    """How many tokens all prompts begin with; equal answers are not shared."""
    # The same word may stand for different regions.
    regions = [int(item.slots[0]) for item in members if item.slots is not None]
    length = min([*(item.prefix_length for item in members), *regions])
    rows = torch.stack([item.input_ids[:length] for item in members])
    differs = (rows != rows[:1]).any(0).nonzero()
    return int(differs[0]) if len(differs) else length


def visible_rows(segments: Tensor) -> Tensor:
    """Which tokens each token attends to: earlier ones of the prefix and of its own segment.

    Args:
        segments: int64 ``[R, T]``: 0 for the prefix, another number for each text after it, -1 for padding.

    Returns:
        bool ``[R, 1, T, T]``, True where a query (third axis) may look.
    """
    causal = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool).tril()
    related = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
    return (causal & related)[:, None]


def image_columns(item: LMMInputs) -> Tensor:
    """Sequence positions of the patches of the image that is looked at: level after level, each row by row.

    Args:
        item: A prepared sample.

    Returns:
        int64 ``[N]``.
    """
    tokens = item.image_mask.nonzero().flatten()
    expected = sum(image.grid.num_tokens for image in item.images)
    assert len(tokens) == expected, (item.record_id, len(tokens), item.grid)
    levels = tokens[: item.grid.num_tokens].split([level.num_tokens for level in item.grid.levels])
    return torch.cat([part[level.places()] for part, level in zip(levels, item.grid.levels, strict=True)])


def phrase_entries(phrase_tokens: Tensor, record_id: str) -> tuple[Tensor, Tensor]:
    """Lists the tokens of phrases, in sequence order; a token of two phrases is listed twice.

    Args:
        phrase_tokens: bool ``[K, T]``.
        record_id: Of the sample, for the error.

    Returns:
        Token and phrase of each entry, both int64 ``[P]``.

    Raises:
        PhraseWithoutTokensError: A phrase has no token.
    """
    if empty := (~phrase_tokens.any(1)).nonzero().flatten().tolist():
        raise PhraseWithoutTokensError(f"{record_id}: phrases {empty} have no token")
    tokens, phrases = phrase_tokens.T.nonzero().unbind(1)
    return tokens, phrases


def phrase_rows(
    inputs: Sequence[LMMInputs],
    members: Sequence[Sequence[int]],
    token_index: Sequence[Tensor],
    columns: Sequence[Tensor],
) -> PhraseRows:
    """Finds the phrase tokens and image columns of a packed batch.

    Args:
        inputs: Prepared samples.
        members: Per row the samples in it.
        token_index: Per sample the place of each of its tokens in its row.
        columns: Per row the places of its patches, int64 ``[N]``.

    Returns:
        Places of the phrase tokens of all rows, and what belongs to which sample.

    Raises:
        PhraseWithoutTokensError: A phrase has no token.
    """
    positions, phrase_ids, counts = [], [], []
    row_slices: list[tuple[int, slice, slice]] = [(0, slice(0), slice(0))] * len(inputs)
    sample_phrase_ids: list[Tensor] = [torch.empty(0)] * len(inputs)
    for row, samples in enumerate(members):
        entry_start = phrase_start = 0
        row_positions, row_phrases = [], []
        for member in samples:
            item = inputs[member]
            tokens, phrases = phrase_entries(item.phrase_tokens, item.record_id)
            row_positions.append(token_index[member][tokens])
            row_phrases.append(phrases + phrase_start)
            sample_phrase_ids[member] = phrases
            entry_end, phrase_end = entry_start + len(tokens), phrase_start + item.num_phrases
            row_slices[member] = (row, slice(entry_start, entry_end), slice(phrase_start, phrase_end))
            entry_start, phrase_start = entry_end, phrase_end
        positions.append(torch.cat(row_positions))
        phrase_ids.append(torch.cat(row_phrases))
        counts.append(phrase_start)
    return PhraseRows(
        positions=pad_sequence(positions, batch_first=True),
        phrase_ids=pad_sequence(phrase_ids, batch_first=True, padding_value=-1),
        columns=pad_sequence(list(columns), batch_first=True),
        num_phrases=max(counts),
        row_slices=row_slices,
        sample_phrase_ids=sample_phrase_ids,
    )


def answer_states(
    last: Tensor, inputs: Sequence[LMMInputs], members: Sequence[Sequence[int]], token_index: Sequence[Tensor]
) -> list[Tensor]:
    """Cuts out the states that predict answers.

    Args:
        last: Last hidden states ``[R, T, d]`` of a packed batch.
        inputs: Prepared samples.
        members: Per row the samples in it.
        token_index: Per sample the place of each of its tokens in its row.

    Returns:
        Per sample the states from its prompt's last token on, ``[T_i - prefix_length + 1, d]``.
    """
    rows = {member: row for row, samples in enumerate(members) for member in samples}
    return [
        last[rows[index], token_index[index][item.prefix_length - 1 :].to(last.device)]
        for index, item in enumerate(inputs)
    ]
