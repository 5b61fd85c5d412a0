"""Vision maps of one resolution become a feature pyramid."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flmm_detseg.errors import ConfigError
from flmm_detseg.heads.frame import Frame
from flmm_detseg.heads.gates import build_gate
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import GroundingBatch, LMMStates

SCALES = (4.0, 2.0, 1.0, 0.5, 0.25)


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of ``[N, C, h, w]``, computed in float32."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, maps: Tensor) -> Tensor:
        """Same shape and dtype."""
        weight, bias = self.weight.float(), self.bias.float()
        normed = nn.functional.layer_norm(
            maps.permute(0, 2, 3, 1).float(), self.normalized_shape, weight, bias, self.eps
        )
        return normed.permute(0, 3, 1, 2).to(maps.dtype)


class SideStream(nn.Module, ABC):
    """A second stream of image features, finer than the vision tower's.

    Attributes:
        channels: C_s of its maps.
        stride: Pixels of the frame per cell.
    """

    channels: int
    stride: float

    @abstractmethod
    def forward(self, batch: GroundingBatch) -> Tensor:
        """Maps ``[B, C_s, h, w]`` that cover the frame."""

    @abstractmethod
    def of_views(self, views: Tensor) -> Tensor:
        """The same of the views of whole images, normalised pixels ``[B, 3, S, S]``."""


@MODELS.register_module()
class VisionNeck(nn.Module):
    """Mixes layers of the vision tower and builds ViTDet's simple feature pyramid on the mixture.

    Args:
        vision_layers: Hidden states of the tower (0 = embeddings), as a gate is to see them; the last is the one that
            every gate begins with.
        vision_channels: d_v of the tower; follows from the LMM.
        patch_size: Pixels per patch; follows from the LMM.
        channels: C of the pyramid.
        scales: Levels as resolution relative to the patch grid, out of :data:`SCALES`, descending.
        gate: How layers are mixed, see :mod:`flmm_detseg.heads.gates`. ``"none"`` reads the last layer only.
        gate_temperature: See :class:`~flmm_detseg.heads.gates.GateSettings`.
        gate_initial_share: See :class:`~flmm_detseg.heads.gates.GateSettings`.
        project_channels: Every layer is normalised and projected (1x1, its own weights) to this many channels before
            the mixing; None mixes the maps as they are.
        side: Second stream, concatenated to the level whose stride is nearest to its own.
        gate_tasks: Tasks that a gate of kind ``"task"`` or ``"dynamic"`` has rows for, beside those of
            :data:`~flmm_detseg.heads.task_rows.TASKS`. Older checkpoints load: rows that they lack stay as they begin.

    Attributes:
        vision_channels: d_v.
        vision_layers: The layers that are read: all, or the last alone where the gate reads no other.
        strides: Pixels of the frame per cell of each level, ascending: patch size / scale.
        channels: C.

    Raises:
        ConfigError: Layers or scales that cannot be.

    Source: ViTDet, arXiv 2203.16527, section 3 (simple feature pyramid).
    """

    def __init__(
        self,
        vision_layers: Sequence[int],
        vision_channels: int,
        patch_size: int,
        channels: int = 256,
        scales: Sequence[float] = (4, 2, 1, 0.5),
        gate: str = "none",
        gate_temperature: float = 0.1,
        gate_initial_share: float = 1e-4,
        project_channels: int | None = None,
        side: SideStream | None = None,
        gate_tasks: Sequence[str] = (),
    ) -> None:
        super().__init__()
        layers, scales = tuple(vision_layers), tuple(float(scale) for scale in scales)
        if not layers or len(set(layers)) < len(layers) or min(layers) < 0:
            raise ConfigError(
                f"`vision_layers` {layers} must be different indices, 0 or larger, at least one"
            )
        if not scales or list(scales) != sorted(set(scales), reverse=True) or not set(scales) <= set(SCALES):
            raise ConfigError(f"`scales` {scales} must be some of {SCALES}, descending")
        mixed_channels = vision_channels if project_channels is None else project_channels
        self.gate = build_gate(
            gate, len(layers), mixed_channels, gate_temperature, gate_initial_share, gate_tasks
        )
        self.vision_layers = layers if self.gate.uses_all_layers else layers[-1:]
        self.vision_channels = vision_channels
        self.patch_size = patch_size
        self.channels = channels
        self.scales = scales
        self.strides = tuple(patch_size / scale for scale in scales)
        self.project = None
        if project_channels is not None:
            self.project = nn.ModuleList(
                nn.Sequential(LayerNorm2d(vision_channels), nn.Conv2d(vision_channels, project_channels, 1))
                for _ in self.vision_layers
            )
        self.levels = nn.ModuleList(_level(mixed_channels, channels, scale) for scale in scales)
        self.side = side
        if side is not None:
            self.side_level = nearest(self.strides, side.stride)
            self.side_fuse = nn.Sequential(
                nn.Conv2d(channels + side.channels, channels, 1, bias=False), LayerNorm2d(channels)
            )

    def forward(self, states: LMMStates, batch: GroundingBatch) -> list[Tensor]:
        """The pyramid of a batch, whose images all have the same patch grid.

        Args:
            states: With ``vision`` maps of :attr:`vision_layers`.
            batch: Tasks for the gate, pixels for the side stream.

        Returns:
            Per level ``[B, C, ceil(rows * scale), ceil(cols * scale)]``, highest resolution first, dtype of the
            weights.

        Raises:
            ConfigError: The images have different grids, or the gate has no row for a sample's task; names the sample.
        """
        assert states.vision is not None, "the neck needs vision maps; its head asks for them in `capture`"
        sizes = {tuple(maps[layer].shape[-2:]) for maps in states.vision for layer in self.vision_layers}
        if len(sizes) > 1:
            raise ConfigError(
                f"images have patch grids of {sorted(sizes)}; a neck reads one grid a call: divide the batch by "
                "flmm_detseg.heads.grids.by_grid"
            )
        dtype = next(self.levels.parameters()).dtype
        layers = [
            torch.stack([maps[layer] for maps in states.vision]).to(dtype) for layer in self.vision_layers
        ]
        for sample in batch.samples:
            self.gate.check_task(sample.task, sample.record_id)
        fine = None if self.side is None else self.side(batch)
        return self.pyramid(layers, [sample.task for sample in batch.samples], fine)

    def pyramid(
        self, layers: Sequence[Tensor], tasks: Sequence[str], fine: Tensor | None = None
    ) -> list[Tensor]:
        """The pyramid of maps.

        Args:
            layers: Per layer of :attr:`vision_layers` ``[B, d_v, rows, cols]``, dtype of the weights.
            tasks: Of each image, known to the gate.
            fine: Maps of the second stream, where there is one.

        Returns:
            As :meth:`forward`.
        """
        if self.project is not None:
            layers = [project(maps) for project, maps in zip(self.project, layers)]
        mixed = self.gate(torch.stack(list(layers), dim=1), tasks)
        pyramid = [level(mixed) for level in self.levels]
        if fine is not None:
            main = pyramid[self.side_level]
            size = tuple(main.shape[-2:])
            fine = nn.functional.interpolate(fine.float(), size=size, mode="bilinear", align_corners=False)
            pyramid[self.side_level] = self.side_fuse(torch.cat([main, fine.to(main.dtype)], dim=1))
        return pyramid

    def map_sizes(self, frame: Frame) -> list[tuple[int, int]]:
        """``(h, w)`` of each level's map over a frame."""
        height, width = frame.size
        return [(math.ceil(height / stride), math.ceil(width / stride)) for stride in self.strides]

    def frames(self, batch: GroundingBatch) -> list[Frame]:
        """The frame of every sample."""
        return [Frame.of(inputs.grid, self.patch_size) for inputs in batch.inputs]

    def statistics(self) -> dict[str, float]:
        """The gate's figures for logs: ``gate_layer{index}`` and ``gate_entropy``."""
        figures = self.gate.statistics()
        if not figures:
            return {}
        names = [f"gate_layer{layer}" for layer in self.vision_layers]
        return dict(zip([*names, "gate_entropy"], figures.values(), strict=True))


def nearest(strides: Sequence[float], stride: float) -> int:
    """Index of the level whose stride is nearest, by ratio."""
    return min(range(len(strides)), key=lambda index: abs(math.log(strides[index] / stride)))


def _level(in_channels: int, channels: int, scale: float) -> nn.Sequential:
    """One level of the pyramid: up or down, then 1x1 and 3x3 convolutions with norms."""
    steps: list[nn.Module] = []
    width = in_channels
    for step in range(int(math.log2(max(scale, 1)))):
        if step:
            steps += [LayerNorm2d(width), nn.GELU()]
        steps.append(nn.ConvTranspose2d(width, max(1, width // 2), 2, stride=2))
        width = max(1, width // 2)
    if scale < 1:
        # Ceiling: a last odd row or column keeps its cell, so that the map covers the frame.
        steps.append(nn.MaxPool2d(int(1 / scale), ceil_mode=True))
    return nn.Sequential(
        *steps,
        nn.Conv2d(width, channels, 1, bias=False),
        LayerNorm2d(channels),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        LayerNorm2d(channels),
    )
