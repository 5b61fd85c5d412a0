"""Regions as tokens: points of a region, gathered around fewer and fewer of them, projected to the language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.added.slot_filler import SlotFiller, by_image, is_integer
from flmm_detseg.lmms.family import LMMFacts
from flmm_detseg.ops.points import farthest_points, nearest_points
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import PatchGrid, Region


@MODELS.register_module()
class SpatialSampler(SlotFiller):
    """One token a region, which knows where in it each feature is: Ferret's spatial-aware visual sampler.

    Points of the region get the tower's features where they lie. Twice, those far from one another are kept and take
    the largest of what their neighbours say: a linear layer of the difference in feature and position, fused with the
    point's own. What is left is flattened and projected. In evaluation the points of a region are always the same; in
    training each reading draws its own.

    Positions are float32 whatever autocast says. A region lies in fractions of its image, so padding and tiles do not
    change it.

    Args:
        layers: Hidden states of the vision tower, joined; negative ones count from the last (-1).
        token: What stands for a region in prompts: signs that neither texts nor the tokenizer have otherwise.
        points: Points of a region, in regions of one pixel too.
        stages: How many of them each stage keeps, falling.
        neighbours: Points of the stage before around each of those, itself included.
        hidden: Width between the two last linear layers; None: the channels of ``layers``.
        legacy_xy_flip: Reads features where Ferret's published weights learned to read them: at x and y swapped, an
            axis reaching from the middle of its first cell to that of its last. For such weights only.

    Raises:
        ConfigError: No layer or none of the tower's, a token that cannot be one, or sizes that do not fit together.

    Source: Ferret (arXiv 2310.07704, section 3.2), written from a description of its method; no code of it.
    """

    def __init__(
        self,
        layers: Sequence[int] = (-2,),
        token: str = "<region>",
        points: int = 512,
        stages: Sequence[int] = (128, 32),
        neighbours: int = 24,
        hidden: int | None = None,
        legacy_xy_flip: bool = False,
    ) -> None:
        super().__init__(layers, token)
        sizes = [points, *stages] if isinstance(stages, Sequence) and not isinstance(stages, str) else []
        falling = all(map(is_integer, sizes)) and all(a > b > 0 for a, b in zip(sizes, sizes[1:]))
        if len(sizes) < 2 or not falling:
            raise ConfigError(
                f"SpatialSampler: `points` is {points!r} and `stages` is {stages!r}; numbers that fall are needed, "
                "such as 512 and (128, 32)"
            )
        if not is_integer(neighbours) or not 0 < neighbours <= sizes[-2]:
            raise ConfigError(
                f"SpatialSampler: `neighbours` is {neighbours!r}; 1 to {sizes[-2]}, the points that the last stage "
                "chooses from, are possible"
            )
        if hidden is not None and not (is_integer(hidden) and hidden > 0):
            raise ConfigError(f"SpatialSampler: `hidden` is {hidden!r}; a positive width is needed, or None")
        if not isinstance(legacy_xy_flip, bool):
            raise ConfigError(
                f"SpatialSampler: `legacy_xy_flip` is {legacy_xy_flip!r}; True or False is needed"
            )
        self.points, self.counts, self.neighbours = points, tuple(stages), neighbours
        self.hidden, self.legacy_xy_flip = hidden, legacy_xy_flip

    def attach(self, model: PreTrainedModel, facts: LMMFacts) -> None:
        """See :class:`LMMPart`."""
        self.channels, device = self.count_layers(facts), model.device
        width = self.hidden or self.channels
        self.stages = nn.ModuleList(
            SamplerStage(self.channels, count, self.neighbours, device) for count in self.counts
        )
        self.project = nn.Sequential(
            nn.Linear(self.counts[-1] * self.channels, width, device=device),
            nn.Linear(width, facts.hidden_size, device=device),
        )

    @property
    def layout(self) -> dict[str, Any]:
        """See :class:`LMMPart`."""
        return {
            "layers": list(self.layers),
            "token": self.token,
            "points": self.points,
            "stages": list(self.counts),
            "neighbours": self.neighbours,
            "legacy_xy_flip": self.legacy_xy_flip,
        }

    def locate(self, region: Region, grid: PatchGrid) -> Tensor:
        """Points of the region.

        Args:
            region: One that :meth:`Region.check` saw.
            grid: Geometry of its image.

        Returns:
            float32 ``[2, points, 2]``, ``(x, y)``: in fractions of the image, then in fractions of the tower's view of
            it, which may have padding.
        """
        places = torch.rand(self.points, 2, dtype=torch.float64) if self.training else _even(self.points)
        height, width = grid.image_size
        inside = region.spread(places, grid.image_size) / places.new_tensor([width, height])
        y0, x0, y1, x1 = grid.view_fractions
        seen = places.new_tensor([x0, y0]) + inside * places.new_tensor([x1 - x0, y1 - y0])
        return torch.stack([inside, seen]).float()

    def fill(self, maps: Sequence[Mapping[int, Tensor]], located: Sequence[Tensor]) -> Tensor:
        """See :class:`SlotFiller`; float32 but for the last two layers, which autocast or a cast may change."""
        last: Tensor = self.project.get_parameter("0.weight")
        points = (
            torch.stack([*located]) if located else last.new_zeros(0, 2, self.points, 2, dtype=torch.float32)
        )
        with torch.autocast(last.device.type, enabled=False):
            features = self.look_up(maps, points[:, 1])
            positions = points[:, 0]
            for stage in self.stages:
                features, positions = stage(features, positions)
        return self.project(features.flatten(1).to(last.dtype))

    def look_up(self, maps: Sequence[Mapping[int, Tensor]], seen: Tensor) -> Tensor:
        """Features where points lie, bilinear between the middles of cells; outside of these as at the edge.

        Args:
            maps: As of :meth:`fill`.
            seen: float32 ``[n, points, 2]``, ``(x, y)`` in fractions of the view.

        Returns:
            float32 ``[n, points, D]``.
        """
        groups = by_image(maps)
        places = (seen.flip(-1) if self.legacy_xy_flip else seen) * 2 - 1
        found = [places.new_zeros(0, self.points, self.channels)]  # where there is no region
        for members in groups:
            shown = torch.cat([maps[members[0]][layer].float() for layer in self.layers])
            read = F.grid_sample(
                shown[None], places[None, members], padding_mode="border", align_corners=self.legacy_xy_flip
            )
            found.append(read[0].permute(1, 2, 0))
        order = torch.tensor(sum(groups, []), dtype=torch.int64, device=seen.device).argsort()
        return torch.cat(found)[order]


class SamplerStage(nn.Module):
    """Keeps points that lie far from one another, each with the largest of what its neighbours say.

    Args:
        channels: D of the features.
        count: Points that are kept.
        neighbours: Points around each of them that are asked.
        device: Of the weights.
    """

    def __init__(self, channels: int, count: int, neighbours: int, device: torch.device) -> None:
        super().__init__()
        self.count, self.neighbours = count, neighbours
        self.difference = nn.Linear(channels + 2, channels + 2, device=device)
        self.fuse = nn.Linear(2 * (channels + 2), channels, device=device)
        self.norm = nn.LayerNorm(channels, device=device)

    def forward(self, features: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the points that are kept, and these.

        ``fuse([difference(neighbour - point), point])`` is linear in both, so what a point contributes as a neighbour
        is computed once for the point, not once for each of those that it is a neighbour of.

        Args:
            features: float32 ``[M, N, D]``.
            positions: float32 ``[M, N, 2]``.

        Returns:
            float32 ``[M, count, D]`` and ``[M, count, 2]``.
        """
        chosen = farthest_points(positions, self.count)
        kept = _take(positions, chosen)
        near = nearest_points(kept, positions, self.neighbours)
        points = torch.cat([features, positions], -1)
        # float32 also where the weights are cast: neighbours differ by little of what they are.
        of_difference, of_point = self.fuse.weight.float().chunk(2, 1)
        bias = self.fuse.bias.float() + of_difference @ self.difference.bias.float()
        said = F.linear(F.linear(points, self.difference.weight.float()), of_difference)
        own = F.linear(_take(points, chosen), of_point, bias) - _take(said, chosen)
        fused = F.relu(_take(said, near) + own[:, :, None])
        norm = self.norm
        normed = F.layer_norm(fused, norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps)
        return normed.amax(2), kept


def _take(values: Tensor, index: Tensor) -> Tensor:
    """Of ``[M, N, C]`` at ``[M, ...]``: ``[M, ..., C]``."""
    rows = torch.arange(len(values), device=values.device).view(-1, *[1] * (index.ndim - 1))
    return values[rows, index]


def _even(count: int) -> Tensor:
    """Points that cover the unit square evenly, however many, float64 ``[count, 2]``: Roberts' sequence R2."""
    steps = torch.arange(count, dtype=torch.float64)[:, None]
    # 1 / g and 1 / g^2 of the plastic number g, which solves g^3 = g + 1.
    ratios = torch.tensor([0.7548776662466927, 0.5698402909980532], dtype=torch.float64)
    return (0.5 + steps * ratios) % 1
