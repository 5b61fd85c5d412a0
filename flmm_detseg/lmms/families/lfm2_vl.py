"""LFM2-VL (transformers' ``Lfm2VlForConditionalGeneration``): short convolutions, tiles with words in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    Cache,
    Lfm2VlConfig,
    Lfm2VlForConditionalGeneration,
    Lfm2VlProcessor,
    PreTrainedModel,
    ProcessorMixin,
)

from flmm_detseg.compat.transformers5 import hybrid_cache, tower_body
from flmm_detseg.lmms.chat import CHATML
from flmm_detseg.lmms.family import LEAVES, Features, LMMFacts, VisionFacts
from flmm_detseg.lmms.hub_family import HubFamily
from flmm_detseg.lmms.lmm import LMM
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import GridLevel, ImageInputs, LMMInputs, PatchGrid

_FULL = "full_attention"


class Lfm2Vl(HubFamily):
    """A small image at its own aspect; a large one squashed to square tiles, and after them all of it once more.

    A word leads every tile, so image tokens are no single run. Most decoder layers are short convolutions, which have
    no attention. The tower reads patches of any number, without a class token; a token is a square of patches.

    Source: LFM2 technical report (arXiv 2511.23404); SigLIP 2 (arXiv 2502.14786).
    """

    model_class = Lfm2VlForConditionalGeneration
    config_class = Lfm2VlConfig
    processor_class = Lfm2VlProcessor
    image_text = "<image>"
    reserved = ("<|image_start|>", "<|image_end|>", "<|img_thumbnail|>")
    template = replace(CHATML, first=f"<|startoftext|>{CHATML.first}")

    @property
    def facts(self) -> LMMFacts:
        """See :class:`Family`."""
        text, vision = self.config.text_config, self.config.vision_config
        return LMMFacts(
            num_layers=text.num_hidden_layers,
            num_heads=text.num_attention_heads,
            hidden_size=text.hidden_size,
            vision=VisionFacts(vision.num_hidden_layers, vision.hidden_size, vision.patch_size, grid=None),
            parts={
                "vision": ("model.vision_tower",),
                "llm": ("model.language_model",),
                "projector": ("model.multi_modal_projector",),
            },
            num_levels=2,
            rowless_layers=tuple(layer for layer, kind in enumerate(text.layer_types) if kind != _FULL),
            lora_targets={"vision": LEAVES, "projector": {"all-linear": None}},
        )

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """See :class:`HubFamily`; a patch."""
        vision = self.config.vision_config
        return (vision.num_channels * vision.patch_size**2,)

    def split_images(
        self, processor: ProcessorMixin, outputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[Tensor, PatchGrid, dict[str, Tensor]]]:
        """See :class:`HubFamily`; the padding of a view's patches is left out."""
        tiles = [self._tiles(processor.image_processor, size) for size in sizes]
        counts = [1 if one == (1, 1) else one[0] * one[1] + 1 for one in tiles]
        shapes = outputs["spatial_shapes"].split(counts)
        views = outputs["pixel_values"].split(counts)
        factor, patch = self.config.downsample_factor, self.config.vision_config.patch_size
        found = []
        for size, (down, across), shape, pixels in zip(sizes, tiles, shapes, views, strict=True):
            rows, cols = shape[-1].tolist()
            whole = GridLevel(rows // factor, cols // factor)
            levels: tuple[GridLevel, ...] = (whole,)
            stack, resized = (0, 0), (rows * patch, cols * patch)
            if (down, across) != (1, 1):
                side = int(shape[0, 0])
                fine = GridLevel(down * (side // factor), across * (side // factor), tiles=(down, across))
                levels, stack, resized = (fine, whole), (1, 0), (down * side * patch, across * side * patch)
            grid = PatchGrid(size, resized, 0, 0, resized, levels, stack=stack, view=(rows, cols))
            patches = [view[:count] for view, count in zip(pixels, shape.prod(-1).tolist(), strict=True)]
            found.append((torch.cat(patches), grid, {"spatial_shapes": shape}))
        return found

    def _tiles(self, processor: ProcessorMixin, size: tuple[int, int]) -> tuple[int, int]:
        """``(rows, cols)`` of tiles of an image: the processor's own choice."""
        split = processor.do_image_splitting and not processor.min_tiles == processor.max_tiles == 1
        if not split or not processor._is_image_too_large(
            *size,
            processor.max_image_tokens,
            processor.encoder_patch_size,
            processor.downsample_factor,
            processor.max_pixels_tolerance,
        ):
            return 1, 1
        across, down, *_ = processor._get_grid_layout(
            *size, processor.min_tiles, processor.max_tiles, processor.tile_size
        )
        return down, across

    def tower_blocks(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """See :class:`Family`."""
        return tower_body(model.model.vision_tower).encoder.layers

    def features(self, model: PreTrainedModel, images: Sequence[ImageInputs]) -> list[Features]:
        """See :class:`Family`; per image the patches of all its views."""
        inputs = _views(images)
        states = model.model.vision_tower(**inputs).last_hidden_state
        states = states[inputs["pixel_attention_mask"].bool()]
        return [Features(part) for part in states.split([len(image.pixel_values) for image in images])]

    def project(
        self, model: PreTrainedModel, features: Sequence[Features], images: Sequence[ImageInputs]
    ) -> list[Tensor]:
        """See :class:`Family`; tile after tile."""
        tokens = []
        for found, image in zip(features, images, strict=True):
            shapes = image.further["spatial_shapes"].tolist()
            views = found.states.split([rows * cols for rows, cols in shapes])
            maps = [view.unflatten(0, shape)[None] for view, shape in zip(views, shapes, strict=True)]
            projected = [model.model.multi_modal_projector(one).flatten(0, 2) for one in maps]
            tokens.append(torch.cat(projected))
        return tokens

    def view_maps(self, states: Tensor, images: Sequence[ImageInputs]) -> list[Tensor]:
        """See :class:`Family`; an image's last view shows the whole of it."""
        views = states.split([len(image.further["spatial_shapes"]) for image in images])
        grids = [image.grid.view_grid for image in images]
        return [
            part[-1, : rows * cols].T.unflatten(1, (rows, cols))
            for part, (rows, cols) in zip(views, grids, strict=True)
        ]

    def new_cache(self, model: PreTrainedModel) -> Cache:
        """See :class:`Family`; of one sequence, and after the first pass it takes one token at a time."""
        return hybrid_cache(self.config.text_config, model.dtype, model.device)

    def own_inputs(self, item: LMMInputs) -> dict[str, Tensor]:
        """See :class:`Family`."""
        return _views(item.images)


def _views(images: Sequence[ImageInputs]) -> dict[str, Tensor]:
    """The tower's arguments: patches of all views ``[V, n, p * p * 3]``, padded with 0, and which are real."""
    shapes = torch.cat([image.further["spatial_shapes"] for image in images])
    counts = shapes.prod(-1).tolist()
    pixels = torch.cat([image.pixel_values for image in images]).split(counts)
    real = [torch.ones(count, dtype=torch.int32, device=shapes.device) for count in counts]
    return {
        "pixel_values": pad_sequence(list(pixels), batch_first=True),
        "spatial_shapes": shapes,
        "pixel_attention_mask": pad_sequence(real, batch_first=True),
    }


@MODELS.register_module()
class Lfm2VlAdapter(LMM):
    """LFM2-VL. See :class:`~flmm_detseg.lmms.lmm.LMM`."""

    family_class = Lfm2Vl
