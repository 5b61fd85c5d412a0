"""Masks and mask logits: resizing, overlap, scores. K masks of one image, sizes ``(H, W)``."""

from __future__ import annotations

from collections.abc import Iterator, Sized

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# About a megabyte of float32: what a core's cache holds.
SCORE_PIXELS = 1 << 18
PIECE_PIXELS = 1 << 20


def pieces(masks: Sized, size: tuple[int, int]) -> Iterator[slice]:
    """Cuts the K masks of an image so that those of a piece fit into a few megabytes at full size.

    Args:
        masks: K of them, in any form with a length.
        size: ``(H, W)`` they will have.

    Yields:
        Slices of them in order, each of at least one mask.
    """
    step = max(1, PIECE_PIXELS // (size[0] * size[1]))
    for start in range(0, len(masks), step):
        yield slice(start, min(start + step, len(masks)))


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


def above(maps: Tensor, threshold: float) -> Tensor:
    """Pixels above a threshold, bool, shape and device of the maps; NaN is not above."""
    if maps.device.type == "cpu":
        # A third of the time of torch's comparison, which counts where maps are large.
        return torch.from_numpy(np.greater(maps.detach().numpy(), np.float32(threshold)))
    return maps.detach() > threshold


def mask_areas(masks: Tensor) -> Tensor:
    """Pixels of each mask.

    Args:
        masks: bool ``[K, H, W]``; K may be 0.

    Returns:
        int64 ``[K]``.
    """
    if masks.device.type == "cpu":
        # A sum of bools makes a 64-bit copy: 100 times the time and 8 times the memory.
        return torch.tensor([np.count_nonzero(mask) for mask in masks.numpy()], dtype=torch.int64)
    return masks.flatten(1).count_nonzero(1)


def mask_scores(logits: Tensor, masks: Tensor) -> Tensor:
    """Mean foreground probability inside each mask.

    Masks of more than :data:`SCORE_PIXELS` pixels are summed in blocks of rows, the blocks in float64: no copy of
    full size, and a sum that is nearer to the true one than a single float32 sum (they differ by less than 1e-6).

    Args:
        logits: ``[K, H, W]``.
        masks: bool ``[K, H, W]``.

    Returns:
        float32 ``[K]`` in [0, 1]; 0 for an empty mask.
    """
    height, width = masks.shape[-2:]
    areas = mask_areas(masks).clamp(min=1)
    if height * width <= SCORE_PIXELS:
        return (logits.float().sigmoid() * masks).sum((-2, -1)) / areas
    rows = min(height, max(1, SCORE_PIXELS // width))
    sums = torch.zeros(len(masks), dtype=torch.float64, device=masks.device)
    chances, weights = torch.empty(2, rows, width, device=masks.device)
    for index, (maps, mask) in enumerate(zip(logits, masks.view(torch.uint8), strict=True)):
        for values, inside in zip(maps.split(rows), mask.split(rows), strict=True):
            columns = inside.amax(0).nonzero()
            if not len(columns):
                continue
            part = slice(int(columns[0]), int(columns[-1]) + 1)
            chance, weight = chances[: len(values), part], weights[: len(values), part]
            torch.sigmoid(values[:, part].float(), out=chance)
            weight.copy_(inside[:, part])  # bytes become floats five times as fast as bools
            sums[index] += chance.mul_(weight).sum().double()
    return (sums / areas).float()
