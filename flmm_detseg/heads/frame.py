"""The frame of dense heads: the tower's view of the whole image, in pixels, and the way from and to the image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flmm_detseg.structures import PatchGrid


@dataclass(frozen=True)
class Frame:
    """Where an image lies in the squared view.

    Attributes:
        size: ``(H, W)`` of the view, pixels: patches times patch size.
        image_size: Original ``(H, W)``.
        fractions: ``(y0, x0, y1, x1)`` of the image in the view, in [0, 1].
    """

    size: tuple[int, int]
    image_size: tuple[int, int]
    fractions: tuple[float, float, float, float]

    @classmethod
    def of(cls, grid: PatchGrid, patch_size: int) -> Frame:
        """The frame of an image: the tower's view of the whole of it."""
        rows, cols = grid.view_grid
        return cls((rows * patch_size, cols * patch_size), grid.image_size, grid.view_fractions)

    @property
    def window_xyxy(self) -> tuple[float, float, float, float]:
        """The image's box in the frame, pixels."""
        y0, x0, y1, x1 = self.fractions
        return x0 * self.size[1], y0 * self.size[0], x1 * self.size[1], y1 * self.size[0]

    def boxes_into(self, boxes_xyxy: Tensor) -> Tensor:
        """Boxes of the original image ``[N, 4]`` -> frame, float32."""
        scale, offset = self._transform(boxes_xyxy.device)
        return boxes_xyxy.float() * scale + offset

    def boxes_out_of(self, boxes_xyxy: Tensor) -> Tensor:
        """Boxes of the frame ``[N, 4]`` -> original image, float32, cut off at its borders."""
        scale, offset = self._transform(boxes_xyxy.device)
        height, width = self.image_size
        limit = torch.tensor([width, height, width, height], device=boxes_xyxy.device, dtype=torch.float32)
        return ((boxes_xyxy.float() - offset) / scale).clamp(min=0).minimum(limit)

    def labels_into(self, labels: Tensor, map_size: tuple[int, int], outside: int) -> Tensor:
        """Label map of the original image -> map over the frame.

        Every cell takes the label of the image pixel below its centre.

        Args:
            labels: Integer ``[H, W]``.
            map_size: ``(h, w)`` of the map, which covers the whole frame.
            outside: Label of cells whose centre is not on the image.

        Returns:
            ``[h, w]``, dtype and device of ``labels``.
        """
        y0, x0, y1, x1 = self.fractions

        def source(side: int, start: float, stop: float, length: int) -> tuple[Tensor, Tensor]:
            centre = (torch.arange(side, dtype=torch.float64) + 0.5) / side
            index = ((centre - start) / (stop - start) * length).floor().long()
            inside = (index >= 0) & (index < length)
            return index.clamp(0, length - 1).to(labels.device), inside.to(labels.device)

        rows, row_inside = source(map_size[0], y0, y1, labels.shape[0])
        cols, col_inside = source(map_size[1], x0, x1, labels.shape[1])
        picked = labels[rows[:, None], cols]
        return torch.where(row_inside[:, None] & col_inside, picked, outside)

    def crop(self, maps: Tensor) -> Tensor:
        """Cuts the image's window out of maps ``[..., h, w]`` that cover the frame (at least one row and column)."""
        height, width = maps.shape[-2:]
        y0, x0, y1, x1 = self.fractions
        top, left = min(round(y0 * height), height - 1), min(round(x0 * width), width - 1)
        bottom, right = max(round(y1 * height), top + 1), max(round(x1 * width), left + 1)
        return maps[..., top:bottom, left:right]

    def _transform(self, device: torch.device) -> tuple[Tensor, Tensor]:
        x0, y0, x1, y1 = self.window_xyxy
        height, width = self.image_size
        scale = torch.tensor([(x1 - x0) / width, (y1 - y0) / height], device=device, dtype=torch.float32)
        offset = torch.tensor([x0, y0], device=device, dtype=torch.float32)
        return scale.repeat(2), offset.repeat(2)
