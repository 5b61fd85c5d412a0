"""Second streams of the neck: finer than the vision tower's patches."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from flmm_detseg.errors import ConfigError
from flmm_detseg.heads.neck import SideStream
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import GroundingBatch


@MODELS.register_module()
class PixelStem(SideStream):
    """A small trained convolutional stem on the pixels of the squared view.

    Args:
        stride: Pixels per cell, a power of two, at least 2.
        channels: C_s of its maps; hidden layers have as many.

    Raises:
        ConfigError: ``stride`` is no power of two, or ``channels`` is not positive.
    """

    def __init__(self, stride: int = 4, channels: int = 64) -> None:
        super().__init__()
        if stride < 2 or stride & (stride - 1):
            raise ConfigError(f"PixelStem: stride={stride} must be a power of two, at least 2")
        if channels < 1:
            raise ConfigError(f"PixelStem: channels={channels} must be positive")
        self.stride = float(stride)
        self.channels = channels
        steps: list[nn.Module] = []
        width = 3
        for _ in range(int(math.log2(stride))):
            steps.append(nn.Conv2d(width, channels, 3, stride=2, padding=1, bias=False))
            steps += [nn.GroupNorm(math.gcd(8, channels), channels), nn.GELU()]
            width = channels
        steps.append(nn.Conv2d(channels, channels, 3, padding=1))
        self.stem = nn.Sequential(*steps)

    def forward(self, batch: GroundingBatch) -> Tensor:
        """Maps of the squared views.

        Args:
            batch: Its inputs hold pixels of the view of the whole image, ``[3, S, S]``.

        Returns:
            ``[B, C_s, ceil(S / stride), ceil(S / stride)]``, dtype of the weights.

        Raises:
            ConfigError: The LMM's processor makes no such view.
        """
        given = [item.images[0].view for item in batch.inputs]
        views = [view for view in given if view is not None]
        if len(views) < len(given):
            raise ConfigError("this LMM's processor gives no view of the whole image; leave `side` out")
        weight = next(self.stem.parameters())
        return self.of_views(torch.stack(views).to(weight.device, weight.dtype))

    def of_views(self, views: Tensor) -> Tensor:
        """See the base."""
        maps: Tensor = self.stem(views)
        return maps
