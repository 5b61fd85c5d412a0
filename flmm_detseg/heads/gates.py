"""Gates: how much of each vision layer a head reads.

Every gate takes the maps of L layers and gives one map of the same shape. All begin as the identity to
:class:`LastLayer`: the last of the layers has a share of ``1 - initial_share`` and the others divide ``initial_share``
(1e-4 by default) between them. It is not zero, because a share of zero would pass no gradient to the others. Shares
come out of a softmax (a sigmoid for channels) of logits divided by ``temperature``; below 1 the distance that the
logits have to travel shrinks with it, which matters because at the start gradients are as small as the shares are.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flmm_detseg.errors import ConfigError
from flmm_detseg.heads.task_rows import TaskRows
from flmm_detseg.utils.names import suggest

_OUTPUT_STD = 1e-3  # of the last weights: nearly zero, so that the start is the identity whatever the input


@dataclass(frozen=True)
class GateSettings:
    """What every gate is made from.

    Attributes:
        num_maps: L, layers to mix.
        channels: C of the maps.
        temperature: What logits are divided by.
        initial_share: Share of all layers but the last together at the start, in (0, 1).
        hidden_channels: Width of the gate's own network, where it has one.
        tasks: Tasks beside those of :data:`~flmm_detseg.heads.task_rows.TASKS`, for gates that distinguish tasks.

    Raises:
        ConfigError: A value outside its range.
    """

    num_maps: int
    channels: int
    temperature: float = 0.1
    initial_share: float = 1e-4
    hidden_channels: int = 64
    tasks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.num_maps < 1 or self.channels < 1 or self.hidden_channels < 1:
            raise ConfigError("a gate needs at least one layer, one channel and one hidden channel")
        if self.temperature <= 0 or not 0 < self.initial_share < 1:
            raise ConfigError(
                f"gate: temperature={self.temperature} must be positive, initial_share={self.initial_share} in (0, 1)"
            )


class LayerGate(nn.Module, ABC):
    """Base of the gates.

    Args:
        settings: Sizes and start.

    Attributes:
        uses_all_layers: Whether other layers than the last are read at all.
        uses_tasks: Whether the samples' tasks are looked at.

    Source: MTAN, arXiv 1803.10704 (``spatial``); SE, arXiv 1709.01507 (``channel``).
    """

    uses_all_layers = True
    uses_tasks = False

    def __init__(self, settings: GateSettings) -> None:
        super().__init__()
        self.num_maps = settings.num_maps
        self.channels = settings.channels
        self.temperature = settings.temperature
        self.initial_share = settings.initial_share
        self._figures: Tensor | None = None

    @abstractmethod
    def shares(self, maps: Tensor, tasks: Sequence[str]) -> Tensor:
        """Share of each layer, float32, ``[1 or B, L, 1 or C, 1 or h, 1 or w]``."""

    def forward(self, maps: Tensor, tasks: Sequence[str]) -> Tensor:
        """Mixes the layers.

        Args:
            maps: ``[B, L, C, h, w]``.
            tasks: Task of each sample.

        Returns:
            ``[B, C, h, w]``, dtype of the maps.

        Raises:
            ConfigError: See :meth:`check_task`.
        """
        # Float32: half precision cannot hold shares near 1e-4 times outlier channels.
        with torch.autocast(maps.device.type, enabled=False):
            shares = self.shares(maps.float(), tasks)
            self._figures = _figures(shares.detach())
            return (shares * maps.float()).sum(1).to(maps.dtype)

    def check_task(self, task: str, where: str) -> None:
        """Checks that the gate knows a task, where it looks at tasks.

        Args:
            task: Of a sample.
            where: The sample, for the error.

        Raises:
            ConfigError: It has no row for the task.
        """

    def statistics(self) -> dict[str, float]:
        """Figures of the last batch.

        Returns:
            ``share_0`` .. ``share_{L-1}``: mean share of each layer, divided by their sum; ``entropy``: mean
            entropy of the shares over the layers in nats, 0 (one layer only) to log L. Empty before the first batch.
        """
        if self._figures is None:
            return {}
        *shares, entropy = self._figures.tolist()
        return {**{f"share_{index}": share for index, share in enumerate(shares)}, "entropy": entropy}

    def _initial_logits(self) -> Tensor:
        """Logits ``[L]`` whose softmax is the initial shares."""
        logits = torch.zeros(self.num_maps)
        if self.num_maps > 1:
            ratio = (1 - self.initial_share) * (self.num_maps - 1) / self.initial_share
            logits[-1] = self.temperature * math.log(ratio)
        return logits


class LastLayer(LayerGate):
    """``none``: the last layer as it is."""

    uses_all_layers = False

    def shares(self, maps: Tensor, tasks: Sequence[str]) -> Tensor:
        """One for the last layer, zero for others."""
        return (
            (torch.arange(maps.shape[1], device=maps.device) == maps.shape[1] - 1)
            .float()
            .view(1, -1, 1, 1, 1)
        )

    def forward(self, maps: Tensor, tasks: Sequence[str]) -> Tensor:
        """The last map, bit for bit."""
        self._figures = _figures(self.shares(maps, tasks))
        return maps[:, -1]


class StaticGate(LayerGate):
    """``static``: one learned logit per layer."""

    def __init__(self, settings: GateSettings) -> None:
        super().__init__(settings)
        self.logits = nn.Parameter(self._initial_logits())

    def shares(self, maps: Tensor, tasks: Sequence[str]) -> Tensor:
        """The same for every sample."""
        return _softmax(self.logits.float()[None] / self.temperature)


class TaskGate(LayerGate):
    """``task``: a network on an embedding of the sample's task; the input is ignored."""

    uses_tasks = True

    def __init__(self, settings: GateSettings) -> None:
        super().__init__(settings)
        self.task_embedding = TaskRows(settings.hidden_channels, settings.tasks)
        self.output = _output(nn.Linear(settings.hidden_channels, self.num_maps), self._initial_logits())

    def check_task(self, task: str, where: str) -> None:
        """See the base."""
        self.task_embedding.require(task, where)

    def shares(self, maps: Tensor, tasks: Sequence[str]) -> Tensor:
        """One row per sample."""
        hidden = nn.functional.gelu(self.task_embedding(tasks).float())
        return _softmax(_dense(self.output, hidden) / self.temperature)


class DynamicGate(TaskGate):
    """``dynamic``: a network on the layers' mean features and the task, one share per sample and layer."""

    def __init__(self, settings: GateSettings) -> None:
        super().__init__(settings)
        self.squeeze = nn.Linear(self.num_maps * self.channels, settings.hidden_channels)

    def shares(self, maps: Tensor, tasks: Sequence[str]) -> Tensor:
        """One row per sample."""
        hidden = _dense(self.squeeze, _pooled(maps)) + self.task_embedding(tasks).float()
        return _softmax(_dense(self.output, nn.functional.gelu(hidden)) / self.temperature)


class ChannelGate(LayerGate):
    """``channel``: squeeze and excitation over the channels of all layers; sigmoid shares, no sum of 1."""

    def __init__(self, settings: GateSettings) -> None:
        super().__init__(settings)
        self.squeeze = nn.Linear(self.num_maps * self.channels, settings.hidden_channels)
        start = torch.full((self.num_maps, self.channels), self.initial_share / max(1, self.num_maps - 1))
        start[-1] = 1 - self.initial_share
        bias = self.temperature * torch.logit(start.double()).float().flatten()
        self.output = _output(nn.Linear(settings.hidden_channels, self.num_maps * self.channels), bias)

    def shares(self, maps: Tensor, tasks: Sequence[str]) -> Tensor:
        """One per sample, layer and channel, each in (0, 1)."""
        hidden = nn.functional.gelu(_dense(self.squeeze, _pooled(maps)))
        logits = _dense(self.output, hidden).view(len(maps), self.num_maps, self.channels, 1, 1)
        return (logits / self.temperature).sigmoid()


class SpatialGate(LayerGate):
    """``spatial``: a mask per layer (two 1x1 convolutions on all layers), shares normalised at every position."""

    def __init__(self, settings: GateSettings) -> None:
        super().__init__(settings)
        # Linear over the last axis: a 1x1 convolution on channels-last maps.
        self.squeeze = nn.Linear(self.num_maps * self.channels, settings.hidden_channels)
        self.output = _output(nn.Linear(settings.hidden_channels, self.num_maps), self._initial_logits())

    def shares(self, maps: Tensor, tasks: Sequence[str]) -> Tensor:
        """One per sample, layer and position."""
        normed = _normed(maps.permute(0, 1, 3, 4, 2))  # [B, L, h, w, C]
        hidden = nn.functional.gelu(_dense(self.squeeze, normed.permute(0, 2, 3, 1, 4).flatten(3)))
        logits = _dense(self.output, hidden) / self.temperature
        return logits.softmax(-1).permute(0, 3, 1, 2)[:, :, None]


GATES: dict[str, type[LayerGate]] = {
    "none": LastLayer,
    "static": StaticGate,
    "task": TaskGate,
    "dynamic": DynamicGate,
    "channel": ChannelGate,
    "spatial": SpatialGate,
}


def build_gate(
    name: str,
    num_maps: int,
    channels: int,
    temperature: float = 0.1,
    initial_share: float = 1e-4,
    tasks: Sequence[str] = (),
) -> LayerGate:
    """A gate by its name in :data:`GATES`.

    Args:
        name: Key of the registry.
        num_maps: L.
        channels: C.
        temperature: See :class:`GateSettings`.
        initial_share: See :class:`GateSettings`.
        tasks: See :class:`GateSettings`.

    Returns:
        A new gate of that kind, untrained.

    Raises:
        ConfigError: Unknown name, a value outside its range, or tasks for a gate that does not look at them.
    """
    if name not in GATES:
        raise ConfigError(f"`gate` is {name!r}{suggest(name, GATES)}")
    if tasks and not GATES[name].uses_tasks:
        known = ", ".join(key for key, gate in GATES.items() if gate.uses_tasks)
        raise ConfigError(f"`gate_tasks` are for gates that look at the task ({known}); `gate` is {name!r}")
    if isinstance(tasks, str):
        raise ConfigError(f"`gate_tasks` is {tasks!r}; give a list of names")
    return GATES[name](GateSettings(num_maps, channels, temperature, initial_share, tasks=tuple(tasks)))


def _figures(shares: Tensor) -> Tensor:
    """Mean share per layer and mean entropy, ``[L + 1]``."""
    normed = shares / shares.sum(1, keepdim=True).clamp(min=1e-12)
    entropy = -torch.xlogy(normed, normed).sum(1).mean()
    return torch.cat([normed.transpose(0, 1).flatten(1).mean(1), entropy[None]])


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(-1)[:, :, None, None, None]


def _normed(features: Tensor) -> Tensor:
    """Features of unit variance over the last axis: those of vision towers hold outliers and differ in scale."""
    # A number of Python: sizes of an export are else what the input has.
    return nn.functional.layer_norm(features, (int(features.shape[-1]),))


def _pooled(maps: Tensor) -> Tensor:
    """``[B, L, C, h, w]`` -> ``[B, L * C]``."""
    return _normed(maps.mean((-2, -1))).flatten(1)


def _dense(layer: nn.Linear, inputs: Tensor) -> Tensor:
    """The layer in float32, whatever the dtype of its weights."""
    return nn.functional.linear(inputs, layer.weight.float(), layer.bias.float())


def _output(layer: nn.Linear, bias: Tensor) -> nn.Linear:
    nn.init.normal_(layer.weight, std=_OUTPUT_STD)
    with torch.no_grad():
        layer.bias.copy_(bias)
    return layer
