"""A CLIP tower whose groups of patches do not see each other.

Each group is a small image of its own: its patches, where they are (a patch keeps its position embedding), and its own
copy of the class token. What a group's features are depends on that group alone, bit for bit up to rounding, so they
can be kept and used again with other groups.

Two paths, equal up to rounding. The full path runs all groups of a batch as one sequence of fixed length under a
block-diagonal mask (training). The gather path runs one group as a short sequence without a mask (serving).

Source: background_cache specification, section 1.3; Block-Attention (arXiv 2409.15355) does the same to text.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from transformers import CLIPVisionModel

from flmm_detseg.compat.transformers5 import run_tower_block, tower_body
from flmm_detseg.errors import ConfigError


@dataclass(frozen=True)
class IsolatedTower:
    """A CLIP tower and the hidden state that the LMM reads.

    Attributes:
        tower: CLIP's.
        feature_layer: The hidden state, counted from the embeddings (0).
    """

    tower: CLIPVisionModel
    feature_layer: int

    @classmethod
    def of(cls, tower: nn.Module, layer: int | list[int]) -> Self:
        """The tower of a LLaVA.

        Args:
            tower: Its tower.
            layer: Its ``vision_feature_layer``.

        Returns:
            The tower with the layer counted from 0.

        Raises:
            ConfigError: Another tower than CLIP's, or several layers are read.
        """
        if not isinstance(tower, CLIPVisionModel):
            raise ConfigError(f"isolated encoding knows CLIP towers, this one is a {type(tower).__name__}")
        if not isinstance(layer, int):
            raise ConfigError(f"isolated encoding reads one vision layer, `vision_feature_layer` is {layer}")
        count = tower.config.num_hidden_layers + 1
        return cls(tower, layer if layer >= 0 else count + layer)

    def states(
        self, pixel_values: Tensor, groups: Tensor, num_groups: int, layers: Collection[int]
    ) -> dict[int, Tensor]:
        """See :func:`isolated_states`.

        Args:
            pixel_values: ``[B, 3, S, S]``.
            groups: int64 ``[B, N]``: the group of each patch.
            num_groups: Groups of an image.
            layers: Whose hidden states are wanted.

        Returns:
            Per layer ``[B, N, D]``, patches in raster order.

        Raises:
            ConfigError: The tower has no such hidden state.
        """
        last = self.tower.config.num_hidden_layers
        check_vision_layers(layers, last)
        return isolated_states(self.tower, pixel_values, groups, num_groups, layers)

    def features_of(self, pixel_values: Tensor, indices: Tensor) -> Tensor:
        """Features of the same patches of several images.

        Args:
            pixel_values: ``[B, 3, S, S]`` in the tower's dtype.
            indices: int64 ``[n]`` in raster order; may be empty.

        Returns:
            ``[B, n, D]``.
        """
        if not len(indices):
            return pixel_values.new_zeros(len(pixel_values), 0, self.tower.config.hidden_size)
        return gathered_batch(self.tower, pixel_values, indices, (self.feature_layer,))[self.feature_layer]


def check_vision_layers(layers: Collection[int], last: int) -> None:
    """Makes sure that hidden states are there.

    Args:
        layers: As asked for.
        last: Number of the tower's last layer.

    Raises:
        ConfigError: Names those that are not.
    """
    if wrong := [layer for layer in layers if not 0 <= layer <= last]:
        raise ConfigError(f"vision_layers {wrong} do not exist; the tower has hidden states 0..{last}")


def group_mask(groups: Tensor, num_groups: int, dtype: torch.dtype) -> Tensor:
    """Additive mask of the full path.

    Args:
        groups: Group of each patch, int64 ``[B, N]``.
        num_groups: G; a group may be empty.
        dtype: Of the tower.

    Returns:
        ``[B, 1, G + N, G + N]``: 0 within a group (its class token first), the lowest number elsewhere, which softmax
        turns into exactly 0.
    """
    classes = torch.arange(num_groups, device=groups.device).expand(len(groups), -1)
    owner = torch.cat([classes, groups], dim=1)
    apart = owner[:, :, None] != owner[:, None, :]
    mask = torch.zeros(apart.shape, dtype=dtype, device=groups.device)
    return mask.masked_fill(apart, torch.finfo(dtype).min)[:, None]


def isolated_states(
    tower: CLIPVisionModel, pixel_values: Tensor, groups: Tensor, num_groups: int, layers: Collection[int]
) -> dict[int, Tensor]:
    """Full path: hidden states of all patches, in raster order.

    Args:
        tower: CLIP's.
        pixel_values: ``[B, 3, S, S]`` in the tower's dtype.
        groups: Group of each patch, int64 ``[B, N]``, each below ``num_groups``.
        num_groups: G.
        layers: Wanted hidden states, 0 = embeddings.

    Returns:
        Per layer ``[B, N, D]``.
    """
    states = _embed(tower, pixel_values)
    classes = states[:, :1].expand(-1, num_groups, -1)
    states = torch.cat([classes, states[:, 1:]], dim=1)
    mask = group_mask(groups.to(states.device), num_groups, states.dtype)
    return {layer: found[:, num_groups:] for layer, found in _run(tower, states, mask, layers).items()}


def gathered_batch(
    tower: CLIPVisionModel, pixel_values: Tensor, indices: Tensor, layers: Collection[int]
) -> dict[int, Tensor]:
    """Gather path: hidden states of one group, the same patches of every image; work grows with the group alone.

    Args:
        tower: CLIP's.
        pixel_values: ``[B, 3, S, S]`` in the tower's dtype.
        indices: The patches of each image, int64 ``[n]`` in raster order.
        layers: Wanted hidden states, 0 = embeddings.

    Returns:
        Per layer ``[B, n, D]``.
    """
    rows = torch.cat([indices.new_zeros(1), indices + 1]).to(pixel_values.device)
    states = _embed(tower, pixel_values)[:, rows]
    return {layer: found[:, 1:] for layer, found in _run(tower, states, None, layers).items()}


def _embed(tower: CLIPVisionModel, pixel_values: Tensor) -> Tensor:
    """Class token and patches with their positions, after the norm that precedes the blocks (token by token)."""
    body = tower_body(tower)
    return body.pre_layrnorm(body.embeddings(pixel_values))


def _run(
    tower: CLIPVisionModel, states: Tensor, mask: Tensor | None, layers: Collection[int]
) -> dict[int, Tensor]:
    found = {0: states} if 0 in layers else {}
    for index, block in enumerate(tower_body(tower).encoder.layers[: max(layers)], start=1):
        states = run_tower_block(block, states, mask)
        if index in layers:
            found[index] = states
    return found
