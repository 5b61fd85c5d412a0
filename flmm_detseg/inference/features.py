"""What the heads of a model read of an image: maps of the vision tower, feature pyramids, shares of layers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from flmm_detseg.heads import named_heads
from flmm_detseg.heads.frame import Frame
from flmm_detseg.heads.gates import TaskGate
from flmm_detseg.heads.neck import VisionNeck
from flmm_detseg.models import GroundingLMM
from flmm_detseg.structures import CaptureSpec, GroundingBatch, LMMStates, Sample

# Layers of the tower that are shown where no head asks for any: so many, evenly, the last among them.
_TOWER_MAPS = 4


@dataclass(frozen=True)
class PyramidFeatures:
    """The pyramid of a head.

    Attributes:
        strides: Pixels of the tower's view per cell of each level.
        levels: float32 ``[C, h, w]`` each, cut to the image.
        layers: Layers of the tower that the gate mixes.
        shares: By task, the mean share of each layer.
    """

    strides: tuple[float, ...]
    levels: tuple[np.ndarray, ...] = field(repr=False)
    layers: tuple[int, ...]
    shares: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class ImageFeatures:
    """Features of one image.

    Attributes:
        tower: By layer of the vision tower (0 = embeddings), float32 ``[d_v, rows, cols]``, cut to the image.
        pyramids: By head.
        text_shares: By head, the share of each decoder layer in the text prompt of phrases.
    """

    tower: dict[int, np.ndarray] = field(repr=False)
    pyramids: dict[str, PyramidFeatures]
    text_shares: dict[str, tuple[float, ...]]


@torch.no_grad()
def read_features(model: GroundingLMM, image: np.ndarray) -> ImageFeatures:
    """Reads an image as the heads do.

    Args:
        model: In evaluation mode.
        image: RGB uint8 ``[H, W, 3]``.

    Returns:
        The tower's maps at the layers that heads read (at a few, where none does), each head's pyramid, and what its
        gate takes of each layer for every task that it knows.

    Raises:
        ConfigError: The LMM's family gives no maps of its tower.
    """
    heads = named_heads(model.heads)
    necks = {name: neck for name, head in heads.items() if (neck := head.feature_neck) is not None}
    layers = sorted({layer for neck in necks.values() for layer in neck.vision_layers})
    batch = model.prepare([Sample("image", image, "", (), task="detection")])
    if not layers:
        last = model.lmm.num_vision_layers
        layers = sorted({max(1, round(last * part / _TOWER_MAPS)) for part in range(1, _TOWER_MAPS + 1)})
    states = model.lmm.encode(batch.inputs, CaptureSpec(vision_layers=tuple(layers)))
    assert states.vision is not None  # asked for
    frame = Frame.of(batch.inputs[0].grid, 1)
    tower = {layer: _plain(frame.crop(states.vision[0][layer])) for layer in layers}
    pyramids = {name: _pyramid(necks[name], sorted(heads[name].result_of), states, batch) for name in necks}
    shares = {name: head.text_layer_shares for name, head in heads.items()}
    text = {name: tuple(map(float, found)) for name, found in shares.items() if found is not None}
    return ImageFeatures(tower, pyramids, text)


def _pyramid(neck: VisionNeck, own: list[str], states: LMMStates, batch: GroundingBatch) -> PyramidFeatures:
    """Levels for the head's own task, and the gate's shares for every task that it knows."""
    tasks = neck.gate.task_embedding.tasks if isinstance(neck.gate, TaskGate) else tuple(own)
    shares: dict[str, tuple[float, ...]] = {}
    kept: list[torch.Tensor] = []
    for task in dict.fromkeys([*tasks, *own]):
        samples = [replace(sample, task=task) for sample in batch.samples]
        levels = neck(states, GroundingBatch(samples, batch.inputs))
        *found, _ = neck.statistics().values()
        shares[task] = tuple(found)
        if task in own:
            kept = levels
    (frame,) = neck.frames(batch)
    return PyramidFeatures(
        neck.strides, tuple(_plain(frame.crop(maps[0])) for maps in kept), neck.vision_layers, shares
    )


def _plain(maps: torch.Tensor) -> np.ndarray:
    found: np.ndarray = maps.float().cpu().numpy()
    return found
