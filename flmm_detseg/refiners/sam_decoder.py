"""segment-anything's mask decoder over a batch of prompts of many images.

The decoder's own ``forward`` takes the prompts of one image, all with the same number of tokens. Here every
prompt brings its own image embedding and padded tokens are masked, so that one call serves a whole batch.
Only the order of operations is our own: all weights are those of the ``MaskDecoder`` that is passed in.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder, TwoWayTransformer
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor


def decode_masks(
    decoder: MaskDecoder,
    image_embeddings: Tensor,
    image_pe: Tensor,
    sparse: Tensor,
    sparse_mask: Tensor,
    dense: Tensor,
) -> tuple[Tensor, Tensor]:
    """Decodes N prompts.

    Args:
        decoder: The decoder.
        image_embeddings: ``[N, D, e, e]``, the embedding of each prompt's image.
        image_pe: Positional encoding of the embedding, ``[1, D, e, e]``.
        sparse: Point, box and text tokens, ``[N, T, D]``; T may be 0.
        sparse_mask: bool ``[N, T]``, False at padding.
        dense: Mask prompts, ``[N, D, e, e]``.

    Returns:
        Mask logits ``[N, M, 4e, 4e]`` and quality estimates ``[N, M]`` of the M mask tokens (0: the single
        mask, 1..3: the three-way ambiguous ones). Equal to the decoder's own results without the padding.
    """
    count, width, rows, cols = image_embeddings.shape
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(count, -1, -1)
    tokens = torch.cat([own, sparse], dim=1)
    token_mask = torch.cat([sparse_mask.new_ones(count, own.shape[1]), sparse_mask], dim=1)
    keys = (image_embeddings + dense).flatten(2).transpose(1, 2)
    key_pe = image_pe.flatten(2).transpose(1, 2)
    tokens, keys = _two_way(decoder.transformer, tokens, token_mask[:, None, None], keys, key_pe)
    upscaled = decoder.output_upscaling(keys.transpose(1, 2).reshape(count, width, rows, cols))
    kernels = [mlp(tokens[:, 1 + index]) for index, mlp in enumerate(decoder.output_hypernetworks_mlps)]
    logits = torch.einsum("nmd,ndhw->nmhw", torch.stack(kernels, dim=1), upscaled)
    return logits, decoder.iou_prediction_head(tokens[:, 0])


def _two_way(
    transformer: TwoWayTransformer, tokens: Tensor, token_mask: Tensor, keys: Tensor, key_pe: Tensor
) -> tuple[Tensor, Tensor]:
    queries = tokens
    for block in transformer.layers:
        queries, keys = _two_way_block(block, queries, keys, tokens, key_pe, token_mask)
    attended = _attend(transformer.final_attn_token_to_image, queries + tokens, keys + key_pe, keys)
    return transformer.norm_final_attn(queries + attended), keys


def _two_way_block(
    block: TwoWayAttentionBlock,
    queries: Tensor,
    keys: Tensor,
    query_pe: Tensor,
    key_pe: Tensor,
    token_mask: Tensor,
) -> tuple[Tensor, Tensor]:
    if block.skip_first_layer_pe:
        queries = _attend(block.self_attn, queries, queries, queries, token_mask)
    else:
        positioned = queries + query_pe
        queries = queries + _attend(block.self_attn, positioned, positioned, queries, token_mask)
    queries = block.norm1(queries)
    queries = queries + _attend(block.cross_attn_token_to_image, queries + query_pe, keys + key_pe, keys)
    queries = block.norm2(queries)
    queries = block.norm3(queries + block.mlp(queries))
    to_tokens = _attend(
        block.cross_attn_image_to_token, keys + key_pe, queries + query_pe, queries, token_mask
    )
    return queries, block.norm4(keys + to_tokens)


def _attend(
    attention: Attention, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None
) -> Tensor:
    def heads(projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)

    attended = F.scaled_dot_product_attention(
        heads(attention.q_proj(query)), heads(attention.k_proj(key)), heads(attention.v_proj(value)), key_mask
    )
    return attention.out_proj(attended.transpose(1, 2).flatten(2))
