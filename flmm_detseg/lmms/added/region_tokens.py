"""Regions as tokens: features of the vision tower averaged over a region, projected to the language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.added.slot_filler import SlotFiller, by_image, is_integer
from flmm_detseg.lmms.family import LMMFacts
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import PatchGrid, Region


@MODELS.register_module()
class RegionTokens(SlotFiller):
    """One token a region: its mean over the tower's feature maps, normalised, through two linear layers.

    A cell counts as far as the region covers it, so small regions and points have features too. It is the mask average
    pooling that Ferret's sampler (:class:`~flmm_detseg.lmms.added.spatial_sampler.SpatialSampler`) is compared with.

    Args:
        layers: Hidden states of the vision tower, joined; negative ones count from the last (-1).
        token: What stands for a region in prompts: signs that neither texts nor the tokenizer have otherwise.
        hidden: Width between the two linear layers; None: that of the language model.

    Raises:
        ConfigError: No layer or none of the tower's, a token that cannot be one, or no width.

    Source: mask pooling of frozen features, as of Ferret (arXiv 2310.07704, section 3.2, its simple baseline) and
    Osprey (arXiv 2312.10032, section 3.2).
    """

    def __init__(
        self, layers: Sequence[int] = (-2,), token: str = "<region>", hidden: int | None = None
    ) -> None:
        super().__init__(layers, token)
        if hidden is not None and not (is_integer(hidden) and hidden > 0):
            raise ConfigError(f"RegionTokens: `hidden` is {hidden!r}; a positive width is needed, or None")
        self.hidden = hidden

    def attach(self, model: PreTrainedModel, facts: LMMFacts) -> None:
        """See :class:`LMMPart`."""
        channels, width = self.count_layers(facts), self.hidden or facts.hidden_size
        place = {"device": model.device}
        self.norm = nn.LayerNorm(channels, **place)
        self.project = nn.Sequential(
            nn.Linear(channels, width, **place), nn.GELU(), nn.Linear(width, facts.hidden_size, **place)
        )

    @property
    def layout(self) -> dict[str, Any]:
        """See :class:`LMMPart`."""
        return {"layers": list(self.layers), "token": self.token}

    def locate(self, region: Region, grid: PatchGrid) -> Tensor:
        """The share of each cell that the region covers, see :meth:`Region.weights`."""
        return region.weights(grid)

    def fill(self, maps: Sequence[Mapping[int, Tensor]], located: Sequence[Tensor]) -> Tensor:
        """See :class:`SlotFiller`; float32 but for what the weights are cast to."""
        groups = by_image(maps)
        pooled = [self.norm.weight.new_zeros(0, *self.norm.normalized_shape)]  # where there is no region
        for places in groups:
            shown = torch.cat([maps[places[0]][layer].float() for layer in self.layers])
            weights = torch.stack([located[place] for place in places])
            pooled.append(torch.einsum("dhw,nhw->nd", shown, weights))
        order = torch.tensor(sum(groups, []), dtype=torch.int64, device=pooled[0].device).argsort()
        return self.project(self.norm(torch.cat(pooled)[order].to(self.norm.weight.dtype)))
