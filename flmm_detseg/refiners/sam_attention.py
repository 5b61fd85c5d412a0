"""segment-anything's image attention through torch's fused kernel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Attention, get_rel_pos
from torch import Tensor


class SdpaAttention(Attention):
    """The encoder's attention as ``scaled_dot_product_attention``; weights and their names are those of the parent.

    The decomposed relative positions go in as an additive bias, so the result is the parent's up to rounding. The bias
    is one matrix of ``N x N`` a head; the parent holds two or three of that size.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``[B, H, W, C]`` -> the same shape."""
        batch, height, width, _ = x.shape
        qkv = self.qkv(x).view(batch, height * width, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        bias = self._bias(query, height, width) if self.use_rel_pos else None
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=self.scale)
        return self.proj(attended.transpose(1, 2).reshape(batch, height, width, -1))

    def _bias(self, query: Tensor, height: int, width: int) -> Tensor:
        """``[B, heads, N, N]``: what a query adds for the row and the column of a key."""
        places = query.unflatten(2, (height, width))
        by_row = torch.einsum("bnhwc,hkc->bnhwk", places, get_rel_pos(height, height, self.rel_pos_h))
        by_column = torch.einsum("bnhwc,wkc->bnhwk", places, get_rel_pos(width, width, self.rel_pos_w))
        return (by_row[..., :, None] + by_column[..., None, :]).flatten(4, 5).flatten(2, 3)


def use_sdpa(encoder: ImageEncoderViT) -> None:
    """Makes every block of an image encoder attend through the fused kernel, in place; no weight changes."""
    for block in encoder.blocks:
        assert type(block.attn) is Attention
        block.attn.__class__ = SdpaAttention
