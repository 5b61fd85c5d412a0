"""Attention rows: a few query tokens against all keys, cut to the image columns and merged per phrase.

Shape letters: B batch, H query heads, G key heads, h chosen heads, P rows, S keys, N columns, K phrases, D
head size.
"""

from __future__ import annotations

import torch
from torch import Tensor


def take_tokens(states: Tensor, positions: Tensor) -> Tensor:
    """Picks tokens of a batch.

    Args:
        states: ``[B, T, d]``.
        positions: int64 ``[B, P]``.

    Returns:
        ``[B, P, d]``.
    """
    return states.gather(1, positions[..., None].expand(-1, -1, states.shape[-1]))


def attention_rows(
    query: Tensor,
    key: Tensor,
    positions: Tensor,
    *,
    scaling: float,
    mask: Tensor | None = None,
    heads: Tensor | None = None,
) -> Tensor:
    """Attention probabilities of some query tokens on all keys, as an eager attention block would return
    them.

    The same roundings as transformers' eager block: scores in the model's dtype, softmax in float32 over all
    keys, result in the model's dtype. Only float16 has scores in float32: before they are scaled they may exceed its
    largest number, 65504, where the kernel that answers (sdpa) has no such trouble.

    Args:
        query: ``[B, H, T, D]`` after rotary embedding.
        key: ``[B, G, S, D]`` after rotary embedding; H is a multiple of G.
        positions: Wanted query tokens, int64 ``[B, P]``.
        scaling: Factor on the scores.
        mask: bool ``[B or 1, 1, T, S]``, True where a query may look; None for causal attention of the last T of
            the S tokens (T < S: the others are in a cache).
        heads: Wanted query heads, int64 ``[h]``; None for all.

    Returns:
        ``[B, h, P, S]`` in ``query``'s dtype; rows sum to one.
    """
    batch, num_rows = positions.shape
    group = query.shape[1] // key.shape[1]
    rows = query.gather(2, positions[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[-1]))
    if heads is not None:
        rows, key, group = rows[:, heads], key[:, heads // group], 1
    # Query heads that share a key head become rows of one product: the keys need not be repeated.
    rows = rows.reshape(batch, key.shape[1], group * num_rows, key.shape[3])
    if query.dtype == torch.float16:
        # Autocast would go back to half precision.
        with torch.autocast(rows.device.type, enabled=False):
            scores = rows.float() @ key.float().transpose(2, 3) * scaling
    else:
        scores = rows @ key.transpose(2, 3) * scaling
    scores = scores.view(batch, key.shape[1] * group, num_rows, key.shape[2])
    if mask is None:
        cached = key.shape[2] - query.shape[2]
        visible = torch.arange(key.shape[2], device=key.device) <= cached + positions[..., None]
    else:
        visible = mask[:, 0].expand(batch, -1, -1)
        visible = visible.gather(1, positions[..., None].expand(-1, -1, visible.shape[-1]))
    scores = scores.masked_fill(~visible[:, None], torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)


def take_columns(rows: Tensor, columns: Tensor) -> Tensor:
    """Cuts attention rows to some keys.

    Args:
        rows: ``[B, h, P, S]``.
        columns: int64 ``[B, N]``.

    Returns:
        ``[B, h, P, N]``.
    """
    return rows.gather(3, columns[:, None, None, :].expand(-1, rows.shape[1], rows.shape[2], -1))


def merge_rows(rows: Tensor, phrase_ids: Tensor, num_phrases: int, *, how: str = "mean") -> Tensor:
    """Merges the attention rows of the tokens of each phrase.

    Args:
        rows: Attention of phrase tokens on image tokens, ``[B, h, P, N]``, softmaxed over all keys, in [0,
            1].
        phrase_ids: Phrase of each row, int64 ``[B, P]``; -1 for padding rows, which are left out. The tokens
            of a phrase need not be adjacent.
        num_phrases: K.
        how: ``"mean"`` (F-LMM) or ``"max"``.

    Returns:
        float32 ``[B, K, h, N]``; zeros for a phrase without rows.

    Source: F-LMM, arXiv 2406.05821, section 3.2.
    """
    batch, num_heads, num_rows, num_columns = rows.shape
    if how == "max":
        # Padding rows go to an extra phrase that is dropped.
        index = phrase_ids.where(phrase_ids >= 0, num_phrases)[:, None, :, None].expand_as(rows)
        merged = rows.new_zeros(batch, num_heads, num_phrases + 1, num_columns, dtype=torch.float32)
        return merged.scatter_reduce(2, index, rows.float(), "amax")[:, :, :num_phrases].transpose(1, 2)
    assert how == "mean", how
    members = phrase_ids[:, None, :] == torch.arange(num_phrases, device=rows.device)[:, None]
    # float(): a quotient of integers would have torch's default dtype, whatever that is set to.
    weights = members.float() / members.sum(-1, keepdim=True).clamp(min=1)
    # Autocast would round the probabilities to half precision once more.
    with torch.autocast(rows.device.type, enabled=False):
        return (weights[:, None] @ rows.float()).transpose(1, 2)
