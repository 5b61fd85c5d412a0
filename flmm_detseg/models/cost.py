"""What training a recipe costs, computed from shapes: memory of its parts, floating-point operations, GPU hours.

Nothing is measured. The model is built on the meta device, so every number of bytes of weights is the model's own;
the U-Net and SAM's encoder are run there, which counts their operations and what autograd keeps. Of the LMM, whose pass
is products of matrices and attention, the operations follow from the shapes (:func:`_lmm_flops`).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from flmm_detseg.errors import ConfigError
from flmm_detseg.heads.attention_mask_head import AttentionMaskHead
from flmm_detseg.heads.base import named_heads
from flmm_detseg.heads.phrase_head import PhraseGroundingHead
from flmm_detseg.heads.seg_token_head import SegTokenHead
from flmm_detseg.lmms.lmm import LMM
from flmm_detseg.lmms.published_images import CutImage, cut_image
from flmm_detseg.lmms.published_sizes import PAN, PUBLISHED
from flmm_detseg.models.grounding_lmm import GroundingLMM
from flmm_detseg.models.shapes import lmm_source, model_on_meta
from flmm_detseg.refiners import Refiner


class Gpu(NamedTuple):
    """A GPU as its maker's data sheet describes it.

    Attributes:
        tflops: Dense bfloat16 operations a second, 10^12.
        memory_gb: 10^9 bytes.
    """

    tflops: float
    memory_gb: float


GPUS: Mapping[str, Gpu] = {
    "a100-40": Gpu(312, 40),
    "a100-80": Gpu(312, 80),
    "h100": Gpu(989, 80),
    "h200": Gpu(989, 141),
    "l40s": Gpu(362, 48),
    "l4": Gpu(121, 24),
    "rtx-4090": Gpu(165, 24),
    "rtx-3090": Gpu(71, 24),
}
# Samples of an epoch of the published training sets (one text an image for RefCOCO's, as the recipes read them), by a
# part of the annotation file's name.
_SETS: Mapping[str, int] = {
    "png_coco_train2017.json": 133_103,
    "data/refcoco/refs": 16_994,
    "data/refcoco+/refs": 16_992,
    "data/refcocog/refs": 21_899,
}
# Of a common photo of COCO, (H, W); of a caption with its question.
IMAGE_SIZE = (480, 640)
TEXT_TOKENS = 100
TOKENS_PER_PHRASE = 3
# Tasks of heads whose maps are not counted.
_NOT_COUNTED = frozenset({"detection", "segmentation", "reasoning"})
PHRASES = 7
# Share of a GPU's operations that training uses: the lower end for batches of one sample, as the recipes have.
UTILISATION = (0.1, 0.4)


@dataclass(frozen=True)
class Cost:
    """What a recipe costs, computed.

    Attributes:
        parameters: Of the whole model.
        trained: Of these, trained.
        weights: Bytes of parameters and buffers.
        optimizer: Bytes of gradients and of AdamW's two moments.
        rows: Bytes of the attention rows of a batch.
        kept: Bytes that autograd keeps of a batch for the backward pass; of dense heads and SAM's decoder none are
            counted.
        largest: Bytes of the largest single operation, with its inputs.
        flops: Floating-point operations of a training step, for each sample.
        samples: Of the whole training; None where that depends on files that are not published sets.
        batch: Samples on a GPU at a time.
        dense: Whether there are heads whose maps are not counted: of detection, segmentation, or mask tokens without a
            SAM.
    """

    parameters: int
    trained: int
    weights: int
    optimizer: int
    rows: int
    kept: int
    largest: int
    flops: float
    samples: int | None
    batch: int
    dense: bool

    @property
    def memory(self) -> int:
        """Bytes of everything together, without what CUDA and the allocator take (1 to 2 GB more)."""
        return self.weights + self.optimizer + self.rows + self.kept + self.largest

    def hours(self, gpu: Gpu, utilisation: float) -> float | None:
        """GPU hours of the whole training.

        Args:
            gpu: Which.
            utilisation: Share of its operations that are used.

        Returns:
            Hours of one GPU; None where the number of samples is not known.
        """
        if self.samples is None:
            return None
        return self.samples * self.flops / (gpu.tflops * 1e12 * utilisation) / 3600


def training_cost(config: Config, *, gpus: int = 8, phrases: int = PHRASES) -> Cost:
    """Computes what training a recipe costs.

    Args:
        config: The recipe; its LMM is a published one, or a folder.
        gpus: Processes that train, which decides how many samples a number of iterations is.
        phrases: Of a sample.

    Returns:
        The figures.

    Raises:
        ConfigError: The LMM's sizes or the settings of its processor are not known, or the config trains nothing.
    """
    if gpus < 1 or phrases < 1:
        raise ConfigError(f"gpus={gpus}, phrases={phrases}; at least 1 of each is needed")
    if "train_dataloader" not in config or "train_cfg" not in config:
        raise ConfigError("the config has no `train_dataloader` and `train_cfg`: it trains nothing")
    model, image = _model(config)
    batch = int(config.train_dataloader.get("batch_size", 1))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    heads = named_heads(model.heads).values()
    found = [_phrase_head(head, image, phrases) for head in heads if isinstance(head, PhraseGroundingHead)]
    parts = [*found, *(_sam(head.sam, phrases) for head in heads if isinstance(head, SegTokenHead))]
    lmm = _lmm(model)
    length = sum(level.rows * level.cols for level in image.grid.levels) + TEXT_TOKENS
    adapted = any(parameter.requires_grad for parameter in lmm.parameters())
    # Forward; with LoRA the gradients of all states, as much as forward (frozen weights get none); and forward once
    # more where blocks are repeated.
    passes = 1.0 + adapted * (1.0 + lmm.model.is_gradient_checkpointing)
    cells = image.grid.output_grid[0] * image.grid.output_grid[1]
    row = lmm.attention_channels * cells * lmm.dtype.itemsize
    return Cost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trained=sum(parameter.numel() for parameter in trained),
        weights=sum(map(_bytes, [*model.parameters(), *model.buffers()])),
        optimizer=sum(3 * _bytes(parameter) for parameter in trained),
        rows=batch * phrases * TOKENS_PER_PHRASE * row if found else 0,
        kept=batch * (sum(part.kept for part in parts) + adapted * _kept_of_lmm(lmm, length, image.patches)),
        largest=max([part.largest for part in parts] + [batch * _widest(lmm, length)]),
        flops=passes * _lmm_flops(lmm, length, image.patches) + sum(part.flops for part in parts),
        samples=_samples(config, batch * gpus),
        batch=batch,
        dense=any(head.result_of & _NOT_COUNTED and not isinstance(head, SegTokenHead) for head in heads),
    )


class _Part(NamedTuple):
    kept: int
    largest: int
    flops: float


def _model(config: Config) -> tuple[GroundingLMM, CutImage]:
    """The model on the meta device, and an image as its LMM cuts it."""
    adapter, name = lmm_source(config)
    known = PUBLISHED.get(name + (PAN if "Pan" in adapter.__name__ else ""))
    if known is None:
        model = model_on_meta(config)
    else:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(known.config))
            model = model_on_meta(config, folder)
    return model, cut_image(_lmm(model).family, name, IMAGE_SIZE)


def _lmm(model: GroundingLMM) -> LMM:
    """The LMM, or the one that the background cache's reader wraps."""
    lmm = getattr(model.lmm, "lmm", model.lmm)
    assert isinstance(lmm, LMM)
    return lmm


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


class _Largest(TorchDispatchMode):
    """Bytes of the largest operation, with its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.bytes = max(self.bytes, sum(map(_bytes, _tensors([args, found]))))
        return found


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)


def count(run: Callable[[], Any], own: nn.Module) -> _Part:
    """Counts a forward pass, on any device.

    Args:
        run: The pass; its result is kept until all is counted.
        own: Whose parameters are not counted among what is kept for the backward pass: they are weights.

    Returns:
        Bytes kept for the backward pass, bytes of the largest operation, operations of the forward pass.
    """
    weights = {parameter.untyped_storage()._cdata for parameter in own.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        alive.append(storage)
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with FlopCounterMode(display=False) as flops, _Largest() as largest:
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            result = run()
        del result
    return _Part(sum(kept.values()), largest.bytes, float(flops.get_total_flops()))


def _phrase_head(head: PhraseGroundingHead, image: CutImage, phrases: int) -> _Part:
    """U-Net on a sample's maps, and SAM."""
    found = []
    if not isinstance(head.mask_head, AttentionMaskHead):
        unet = head.mask_head
        maps = torch.empty(phrases, unet.in_channels, *image.grid.output_grid, device="meta")
        part = count(lambda: unet(maps), unet)
        # Backward: the gradients of maps and of weights, each as much as forward.
        found.append(part._replace(flops=3 * part.flops))
    if head.sam is not None:
        found.append(_sam(head.sam, phrases))
    return _Part(
        sum(part.kept for part in found),
        max((part.largest for part in found), default=0),
        sum(part.flops for part in found),
    )


def _sam(sam: Refiner, prompts: int) -> _Part:
    """SAM's image encoder, which is frozen (nothing is kept), on a sample's image; its decoder on the prompts."""
    encoder = _encoder(sam)
    own = sum(parameter.numel() for module in sam.prompted_parts for parameter in module.parameters())
    side = sam.side // 16
    return encoder._replace(flops=encoder.flops + 3 * 2.0 * own * side * side * prompts)


def _encoder(sam: Refiner) -> _Part:
    """SAM's image encoder."""
    encoder = sam.image_encoder
    dtype = next(encoder.parameters()).dtype
    pixels = torch.empty(1, 3, sam.side, sam.side, device="meta", dtype=dtype)
    with torch.no_grad():
        return count(lambda: encoder(pixels), encoder)


def _linears(module: nn.Module) -> list[nn.Linear]:
    return [part for part in module.modules() if isinstance(part, nn.Linear)]


def _tower(lmm: LMM) -> list[nn.Module]:
    """Blocks of the tower that the projector's input comes from."""
    unread = list(lmm.family.unread(lmm.model, ()))
    return [block for block in lmm.family.tower_blocks(lmm.model) if all(block is not one for one in unread)]


def _lmm_flops(lmm: LMM, length: int, patches: int) -> float:
    """Operations of one forward pass: two for each weight of a linear layer and each token, and attention.

    Attention of the decoder is causal: half of ``4 * length**2 * heads * head_dim`` in each layer. The tower's patches
    see those of their own view.
    """
    decoder, tower = lmm.family.decoder(lmm.model), _tower(lmm)
    facts = lmm.family.facts
    weights = sum(linear.weight.numel() for linear in _linears(decoder))
    width = next(linear.out_features for linear in _linears(decoder))  # of the queries of a layer
    view = patches if facts.vision.grid is None else facts.vision.grid[0] * facts.vision.grid[1]
    tower_weights = sum(linear.weight.numel() for block in tower for linear in _linears(block))
    attention = 2.0 * facts.num_layers * length**2 * width
    tower_attention = 4.0 * len(tower) * patches * view * facts.vision.channels
    return 2.0 * weights * length + attention + 2.0 * tower_weights * patches + tower_attention


def _kept_of_lmm(lmm: LMM, length: int, patches: int) -> int:
    """Bytes that an adapted LMM keeps of a sample: input and output of every linear layer; where blocks are repeated,
    the input of every block, and one block's linear layers.
    """
    layers, tower = lmm.family.decoder(lmm.model).layers, _tower(lmm)
    size = lmm.dtype.itemsize
    one = length * size * sum(linear.in_features + linear.out_features for linear in _linears(layers[0]))
    if not lmm.model.is_gradient_checkpointing:
        return one * len(layers)
    states = len(layers) * length * lmm.hidden_size + len(tower) * patches * lmm.family.facts.vision.channels
    return states * size + one


def _widest(lmm: LMM, length: int) -> int:
    """Bytes of the widest linear layer of the decoder: input and output of a sample, and its weight."""
    size = lmm.dtype.itemsize
    return max(
        (length * (linear.in_features + linear.out_features) + linear.weight.numel()) * size
        for linear in _linears(lmm.family.decoder(lmm.model))
    )


def _samples(config: Config, per_step: int) -> int | None:
    """Samples of a whole training."""
    if "max_iters" in config.train_cfg:
        return int(config.train_cfg["max_iters"]) * per_step
    text = str(config.train_dataloader["dataset"])
    found = [size for name, size in _SETS.items() if name in text]
    return int(config.train_cfg["max_epochs"]) * sum(found) if found else None
