"""Coarse masks straight from attention rows: nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flmm_detseg.errors import ConfigError
from flmm_detseg.registry import MODELS

# Logits of the brightest and the darkest cell; SAM's own masks have logits of this order.
_RANGE = 8.0


@MODELS.register_module()
class AttentionMaskHead(nn.Module):
    """The mean of the attention maps it gets, smoothed and cut at a share of its range.

    Takes the place of :class:`~flmm_detseg.heads.unet_head.UNetHead` in a phrase head. Which attention heads point at
    things is chosen where rows are read: ``lmm=dict(rows=dict(heads="top:3", ranking="FILE"))``, with a ranking that
    ``flmm-detseg rank-heads`` wrote. Without it the mean is over all heads, which is a baseline.

    Args:
        in_channels: C of the attention stack (``LMMAdapter.attention_channels``).
        smoothing: Standard deviation of the Gaussian, in cells of the map; 0: none.
        threshold: Where the mask begins, as a share of the way from the darkest to the brightest cell of the image.

    Raises:
        ConfigError: ``smoothing`` is negative, or ``threshold`` not within (0, 1).

    Source: Kang et al., Your Large Vision-Language Model Only Needs A Few Attention Heads For Visual Grounding, CVPR
    2025 (arXiv 2503.06287), section 4: maps of few heads, smoothed and added.
    """

    trained = False

    def __init__(self, in_channels: int, smoothing: float = 0.7, threshold: float = 0.5) -> None:
        super().__init__()
        if smoothing < 0:
            raise ConfigError(f"AttentionMaskHead: `smoothing` is {smoothing}; 0 or more cells are needed")
        if not 0 < threshold < 1:
            raise ConfigError(
                f"AttentionMaskHead: `threshold` is {threshold}; a share within (0, 1) is needed"
            )
        self.in_channels = in_channels
        self.smoothing = smoothing
        self.threshold = threshold

    def forward(self, maps: Tensor) -> Tensor:
        """One logit map per attention stack.

        Args:
            maps: ``[N, C, h, w]`` in [0, 1], the image without padding, any float dtype.

        Returns:
            float32 ``[N, h, w]``, positive inside of the mask; where attention is the same everywhere, negative.
        """
        maps = maps.float()
        maps = maps / maps.sum((-2, -1), keepdim=True).clamp(min=1e-12)
        mean = gaussian(maps.mean(1), self.smoothing)
        low, high = mean.amin((-2, -1), keepdim=True), mean.amax((-2, -1), keepdim=True)
        share = (mean - low) / (high - low).clamp(min=1e-12)
        return _RANGE * (share - self.threshold) / max(self.threshold, 1 - self.threshold)

    def forward_grouped(self, stacks: Sequence[Tensor], maps_per_call: int | None = None) -> list[Tensor]:
        """As :meth:`UNetHead.forward_grouped`.

        Args:
            stacks: Per sample ``[K_i, C, h_i, w_i]``; K_i may be 0.
            maps_per_call: Read by the U-Net only: here a map costs nothing beside its stack.

        Returns:
            Per sample float32 ``[K_i, h_i, w_i]``.
        """
        return [self(stack) for stack in stacks]


def gaussian(maps: Tensor, sigma: float) -> Tensor:
    """Smooths maps; beyond the edge lies what is at the edge.

    Args:
        maps: ``[N, h, w]``.
        sigma: Standard deviation in cells; 0: as they are.

    Returns:
        ``[N, h, w]``.
    """
    if sigma == 0 or len(maps) == 0:
        return maps
    radius = max(1, round(4 * sigma))
    places = torch.arange(-radius, radius + 1, dtype=maps.dtype, device=maps.device)
    weights = torch.exp(-0.5 * (places / sigma) ** 2)
    weights = (weights / weights.sum())[None, None]
    smooth = F.pad(maps[:, None], (radius, radius, radius, radius), mode="replicate")
    smooth = F.conv2d(smooth, weights[:, :, None, :])
    return F.conv2d(smooth, weights[..., None])[:, 0]
