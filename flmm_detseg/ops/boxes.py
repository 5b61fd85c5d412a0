"""Boxes of masks, on the masks' device."""

from __future__ import annotations

import torch
from torch import Tensor


def masks_to_boxes(masks: Tensor) -> Tensor:
    """Tight boxes around masks.

    Args:
        masks: bool ``[K, H, W]``; K may be 0.

    Returns:
        float32 ``[K, 4]``, xyxy in pixels, half-open (``x1`` and ``y1`` are one past the last pixel); zeros
        for an empty mask.
    """

    def extent(occupied: Tensor) -> tuple[Tensor, Tensor]:
        length = occupied.shape[-1]
        index = torch.arange(length, device=occupied.device)
        return torch.where(occupied, index, length).amin(-1), torch.where(occupied, index + 1, 0).amax(-1)

    # The maximum of bytes takes a tenth of the time of `any`.
    bits = masks.view(torch.uint8)
    x0, x1 = extent(bits.amax(-2).bool())
    y0, y1 = extent(bits.amax(-1).bool())
    boxes = torch.stack([x0, y0, x1, y1], dim=-1).float()
    return boxes * (x1 > 0)[:, None]


def scale_boxes(boxes_xyxy: Tensor, old_size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """Boxes of an image after the image was resized.

    Args:
        boxes_xyxy: float ``[K, 4]`` in the frame of ``old_size``.
        old_size: ``(H, W)``.
        new_size: ``(H, W)``.

    Returns:
        float ``[K, 4]`` in the frame of ``new_size``.
    """
    factor_y, factor_x = new_size[0] / old_size[0], new_size[1] / old_size[1]
    return boxes_xyxy * boxes_xyxy.new_tensor([factor_x, factor_y, factor_x, factor_y])
