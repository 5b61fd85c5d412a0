"""Regions as tokens: features of the vision tower averaged over a region, projected to the language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.added.lmm_part import SlotFiller
from flmm_detseg.lmms.family import LMMFacts
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import Region


@MODELS.register_module()
class RegionTokens(SlotFiller):
    """One token a region: its mean over the tower's feature maps, normalised, through two linear layers.

    A cell counts as far as the region covers it, so small regions and points have features too.

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
        super().__init__()
        if isinstance(layers, str) or not isinstance(layers, Sequence) or not all(map(_is_integer, layers)):
            raise ConfigError(f"RegionTokens: `layers` is {layers!r}; a list such as (-2,) is needed")
        if not layers:
            raise ConfigError(
                "RegionTokens: `layers` is empty; name hidden states of the vision tower, such as (-2,)"
            )
        if not isinstance(token, str) or not token or any(character.isspace() for character in token):
            raise ConfigError(f"RegionTokens: `token` is {token!r}; a text without white space is needed")
        if token.isalnum():
            raise ConfigError(
                f"RegionTokens: `token` is {token!r}, a word that texts may have; one of signs is needed, such as "
                "'<region>'"
            )
        if hidden is not None and not (_is_integer(hidden) and hidden > 0):
            raise ConfigError(f"RegionTokens: `hidden` is {hidden!r}; a positive width is needed, or None")
        self.layers = tuple(layers)
        self.token = token
        self.hidden = hidden

    def attach(self, model: PreTrainedModel, facts: LMMFacts) -> None:
        """See :class:`LMMPart`."""
        count = facts.vision.num_layers
        if wrong := [layer for layer in self.layers if not -count - 1 <= layer <= count]:
            raise ConfigError(
                f"RegionTokens: `layers` names {wrong}; the vision tower has hidden states 0 to {count}, or from the "
                f"last one -1 to {-count - 1}"
            )
        self.layers = tuple(dict.fromkeys(layer + count + 1 if layer < 0 else layer for layer in self.layers))
        channels, width = facts.vision.channels * len(self.layers), self.hidden or facts.hidden_size
        place = {"device": model.device}
        self.norm = nn.LayerNorm(channels, **place)
        self.project = nn.Sequential(
            nn.Linear(channels, width, **place), nn.GELU(), nn.Linear(width, facts.hidden_size, **place)
        )

    @property
    def layout(self) -> dict[str, Any]:
        """See :class:`LMMPart`."""
        return {"layers": list(self.layers), "token": self.token}

    def fill(self, maps: Sequence[Mapping[int, Tensor]], regions: Sequence[tuple[Region, Tensor]]) -> Tensor:
        """See :class:`SlotFiller`; float32 but for what the weights are cast to."""
        pooled = [
            torch.cat([torch.einsum("dhw,hw->d", found[layer].float(), weights) for layer in self.layers])
            for found, (_, weights) in zip(maps, regions, strict=True)
        ]
        dtype = self.norm.weight.dtype
        return self.project(self.norm(torch.stack(pooled).to(dtype)))


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
