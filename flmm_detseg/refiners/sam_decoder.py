"""segment-anything's mask decoder over a batch of prompts of many images, see :mod:`~flmm_detseg.refiners.two_way`."""

from __future__ import annotations

import torch
from segment_anything.modeling import MaskDecoder, TwoWayTransformer
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor

from flmm_detseg.refiners.two_way import AttentionParts, BlockParts, TwoWayParts, two_way


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
    tokens, keys = two_way(_parts(decoder.transformer), tokens, token_mask, keys, key_pe)
    upscaled = decoder.output_upscaling(keys.transpose(1, 2).reshape(count, width, rows, cols))
    kernels = [mlp(tokens[:, 1 + index]) for index, mlp in enumerate(decoder.output_hypernetworks_mlps)]
    logits = torch.einsum("nmd,ndhw->nmhw", torch.stack(kernels, dim=1), upscaled)
    return logits, decoder.iou_prediction_head(tokens[:, 0])


def _parts(transformer: TwoWayTransformer) -> TwoWayParts:
    blocks = [_block(block) for block in transformer.layers]
    return TwoWayParts(blocks, _attention(transformer.final_attn_token_to_image), transformer.norm_final_attn)


def _block(block: TwoWayAttentionBlock) -> BlockParts:
    return BlockParts(
        to_tokens=_attention(block.self_attn),
        to_image=_attention(block.cross_attn_token_to_image),
        mlp=block.mlp,
        from_image=_attention(block.cross_attn_image_to_token),
        norms=(block.norm1, block.norm2, block.norm3, block.norm4),
        is_first=block.skip_first_layer_pe,
    )


def _attention(layer: Attention) -> AttentionParts:
    return AttentionParts(layer.q_proj, layer.k_proj, layer.v_proj, layer.out_proj, layer.num_heads)
