"""Masks and mask logits: resizing, overlap, scores. K masks of one image, sizes ``(H, W)``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest-neighbour resize (``floor(i * H / size)``, torch's ``"nearest"``).

    Args:
        masks: bool ``[K, H, W]``; K may be 0.
        size: Wanted ``(h, w)``.

    Returns:
        bool ``[K, h, w]``.
    """
    if tuple(masks.shape[-2:]) == tuple(size):
        return masks.bool()
    return F.interpolate(masks[:, None].to(torch.uint8), size=tuple(size), mode="nearest")[:, 0].bool()


def resize_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of logits or probabilities in float32, pixel centres aligned (``align_corners=False``).

    Args:
        maps: ``[K, H, W]``; K may be 0.
        size: Wanted ``(h, w)``.

    Returns:
        float32 ``[K, h, w]``.
    """
    maps = maps.float()
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps[:, None], size=tuple(size), mode="bilinear", align_corners=False)[:, 0]


def mask_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of masks, broadcast over the leading axes.

    Args:
        first: bool ``[..., H, W]``.
        second: bool ``[..., H, W]``.

    Returns:
        float32 ``[...]`` in [0, 1]; 0 where both masks are empty.
    """
    intersection = (first & second).sum((-2, -1))
    union = (first | second).sum((-2, -1))
    return intersection / union.clamp(min=1)


def mask_scores(logits: Tensor, masks: Tensor) -> Tensor:
    """Mean foreground probability inside each mask.

    Args:
        logits: ``[K, H, W]``.
        masks: bool ``[K, H, W]``.

    Returns:
        float32 ``[K]`` in [0, 1]; 0 for an empty mask.
    """
    inside = (logits.float().sigmoid() * masks).sum((-2, -1))
    return inside / masks.sum((-2, -1)).clamp(min=1)
