"""The two-way transformer that the mask decoders of all SAMs have, over a batch of prompts of many images.

The decoders' own ``forward`` takes the prompts of one image, all with the same number of tokens. Here every prompt
brings its own image embedding and padded tokens are masked, so that one call serves a whole batch. Only the order of
operations is our own: all weights are those of the decoder, whose libraries call the parts by different names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn


class AttentionParts(NamedTuple):
    """An attention layer: projections of queries, keys, values and of the result, and its heads."""

    query: nn.Module
    key: nn.Module
    value: nn.Module
    out: nn.Module
    num_heads: int


class BlockParts(NamedTuple):
    """A block: tokens attend to each other, tokens to the image, the image to tokens.

    Attributes:
        to_tokens: Tokens attend to each other.
        to_image: Tokens attend to the image.
        mlp: Of the tokens.
        from_image: The image attends to tokens.
        norms: After each of the four, in this order.
        is_first: Whether tokens are their own positions and are replaced, not added to, by the first attention.
    """

    to_tokens: AttentionParts
    to_image: AttentionParts
    mlp: nn.Module
    from_image: AttentionParts
    norms: tuple[nn.Module, nn.Module, nn.Module, nn.Module]
    is_first: bool


class TwoWayParts(NamedTuple):
    """A two-way transformer: blocks, then tokens attend to the image once more."""

    blocks: Sequence[BlockParts]
    last: AttentionParts
    last_norm: nn.Module


def two_way(
    parts: TwoWayParts, tokens: Tensor, token_mask: Tensor, keys: Tensor, key_pe: Tensor
) -> tuple[Tensor, Tensor]:
    """Runs the transformer.

    Args:
        parts: Of the transformer.
        tokens: Output and prompt tokens, ``[N, T, D]``.
        token_mask: bool ``[N, T]``, False at padding.
        keys: Image embeddings with mask prompts, ``[N, e * e, D]``.
        key_pe: Their positions, ``[1, e * e, D]``.

    Returns:
        Tokens and image, shapes as they came.
    """
    queries, attended_tokens = tokens, token_mask[:, None, None]
    for block in parts.blocks:
        queries, keys = _block(block, queries, keys, tokens, key_pe, attended_tokens)
    attended = _attend(parts.last, queries + tokens, keys + key_pe, keys)
    return parts.last_norm(queries + attended), keys


def _block(
    block: BlockParts, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor, token_mask: Tensor
) -> tuple[Tensor, Tensor]:
    norm1, norm2, norm3, norm4 = block.norms
    if block.is_first:
        queries = _attend(block.to_tokens, queries, queries, queries, token_mask)
    else:
        positioned = queries + query_pe
        queries = queries + _attend(block.to_tokens, positioned, positioned, queries, token_mask)
    queries = norm1(queries)
    queries = queries + _attend(block.to_image, queries + query_pe, keys + key_pe, keys)
    queries = norm2(queries)
    queries = norm3(queries + block.mlp(queries))
    to_tokens = _attend(block.from_image, keys + key_pe, queries + query_pe, queries, token_mask)
    return queries, norm4(keys + to_tokens)


def _attend(
    attention: AttentionParts, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None
) -> Tensor:
    def heads(projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)

    attended = F.scaled_dot_product_attention(
        heads(attention.query(query)), heads(attention.key(key)), heads(attention.value(value)), key_mask
    )
    return attention.out(attended.transpose(1, 2).flatten(2))
