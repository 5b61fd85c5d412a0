"""From character spans to tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def tokens_of_spans(
    offsets: Sequence[tuple[int, int]], text: str, phrases: Sequence[Sequence[tuple[int, int]]]
) -> Tensor:
    """Finds the tokens of each phrase.

    A token belongs to a phrase when it shares at least one character with one of its spans that is no white
    space (tokenizers differ in which token holds the space before a word).

    Args:
        offsets: Character range ``(start, end)`` of each token in ``text``, half-open; special tokens are
            empty ranges. T of them.
        text: The tokenised text.
        phrases: Per phrase its character spans ``(start, end)`` in ``text``, half-open, inside the text. K of
            them.

    Returns:
        bool ``[K, T]``; a token can belong to several phrases. A phrase of white space has no token.
    """
    # visible[i] = characters before position i that are no white space: O(1) test per token and span.
    visible = torch.tensor([0] + [not char.isspace() for char in text], dtype=torch.int64).cumsum(0)
    starts, ends = torch.tensor(offsets, dtype=torch.int64).reshape(-1, 2).unbind(1)
    members = torch.zeros(len(phrases), len(offsets), dtype=torch.bool)
    for row, spans in zip(members, phrases, strict=True):
        for span_start, span_end in spans:
            low, high = starts.clamp(min=span_start), ends.clamp(max=span_end)
            row |= (low < high) & (visible[high.clamp(min=0)] > visible[low.clamp(max=len(text))])
    return members
