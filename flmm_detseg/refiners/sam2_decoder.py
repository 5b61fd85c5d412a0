"""SAM 2's mask decoder over a batch of prompts of many images, see :mod:`~flmm_detseg.refiners.two_way`."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.models.sam2.modeling_sam2 import (
    Sam2Attention,
    Sam2MaskDecoder,
    Sam2TwoWayAttentionBlock,
    Sam2TwoWayTransformer,
)

from flmm_detseg.refiners.two_way import AttentionParts, BlockParts, TwoWayParts, two_way


def decode_masks(
    decoder: Sam2MaskDecoder,
    features: tuple[Tensor, ...],
    image_pe: Tensor,
    sparse: Tensor,
    sparse_mask: Tensor,
    dense: Tensor,
) -> tuple[Tensor, Tensor]:
    """Decodes N prompts.

    Args:
        decoder: The decoder.
        features: Of each prompt's image: high-resolution features ``[N, D / 8, 4e, 4e]`` and ``[N, D / 4, 2e, 2e]``
            (after the decoder's own two convolutions), and the embedding ``[N, D, e, e]``.
        image_pe: Positional encoding of the embedding, ``[1, D, e, e]``.
        sparse: Point, box and text tokens, ``[N, T, D]``.
        sparse_mask: bool ``[N, T]``, False at padding.
        dense: Mask prompts, ``[N, D, e, e]``.

    Returns:
        Mask logits ``[N, M, 4e, 4e]`` and quality estimates ``[N, M]`` of the M mask tokens (0: the single mask, 1..3:
        the three-way ambiguous ones). Equal to the decoder's own results without the padding. Its estimate of whether
        there is an object at all is not computed: SAM 2 uses it in videos.
    """
    fine, middle, embeddings = features
    count, width, rows, cols = embeddings.shape
    own = torch.cat([decoder.obj_score_token.weight, decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([own.expand(count, -1, -1), sparse], dim=1)
    token_mask = torch.cat([sparse_mask.new_ones(count, len(own)), sparse_mask], dim=1)
    keys = (embeddings + dense).flatten(2).transpose(1, 2)
    key_pe = image_pe.flatten(2).transpose(1, 2)
    tokens, keys = two_way(_parts(decoder.transformer), tokens, token_mask, keys, key_pe)
    image = keys.transpose(1, 2).reshape(count, width, rows, cols)
    image = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(image) + middle))
    image = decoder.activation(decoder.upscale_conv2(image) + fine)
    kernels = [mlp(tokens[:, 2 + index]) for index, mlp in enumerate(decoder.output_hypernetworks_mlps)]
    logits = torch.einsum("nmd,ndhw->nmhw", torch.stack(kernels, dim=1), image)
    return logits, decoder.iou_prediction_head(tokens[:, 1])


def stable_choice(logits: Tensor, quality: Tensor, delta: float, threshold: float) -> Tensor:
    """SAM 2's one mask of a prompt: the single mask, or the best candidate where the single mask is not stable.

    Args:
        logits: ``[N, M, h, w]``.
        quality: ``[N, M]``.
        delta: Stable is a mask that hardly changes when it is cut at ``delta`` instead of ``-delta``.
        threshold: Least share of the larger cut that a stable mask's smaller one covers.

    Returns:
        int64 ``[N]``: which of the M.

    Source: SAM 2, arXiv 2408.00714 (its ``dynamic_multimask_via_stability``).
    """
    single = logits[:, 0].flatten(1)
    smaller, larger = (single > delta).sum(1), (single > -delta).sum(1)
    stable = torch.where(larger > 0, smaller / larger, 1.0) >= threshold
    return torch.where(stable, 0, 1 + quality[:, 1:].argmax(1))


def _parts(transformer: Sam2TwoWayTransformer) -> TwoWayParts:
    blocks = [_block(block) for block in transformer.layers]
    last = _attention(transformer.final_attn_token_to_image)
    return TwoWayParts(blocks, last, transformer.layer_norm_final_attn)


def _block(block: Sam2TwoWayAttentionBlock) -> BlockParts:
    return BlockParts(
        to_tokens=_attention(block.self_attn),
        to_image=_attention(block.cross_attn_token_to_image),
        mlp=block.mlp,
        from_image=_attention(block.cross_attn_image_to_token),
        norms=(block.layer_norm1, block.layer_norm2, block.layer_norm3, block.layer_norm4),
        is_first=block.skip_first_layer_pe,
    )


def _attention(layer: Sam2Attention) -> AttentionParts:
    return AttentionParts(layer.q_proj, layer.k_proj, layer.v_proj, layer.o_proj, layer.num_attention_heads)
