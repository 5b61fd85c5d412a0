"""InternVL3 (transformers' ``InternVLForConditionalGeneration``): tiles, pixel shuffle, thumbnail last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.chat import CHATML
from flmm_detseg.lmms.family import LEAVES, Features, LMMFacts, VisionFacts, decoder_windows
from flmm_detseg.lmms.hub_family import HubFamily
from flmm_detseg.lmms.lmm import LMM
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import GridLevel, ImageInputs, PatchGrid


class InternVL(HubFamily):
    """The image squashed to a rectangle of square tiles, and after them all of it in one tile.

    Tokens are patches that were shuffled together. The stack's coarse level is the thumbnail; an image of one tile has
    no thumbnail, and its one level stands for both.

    Source: InternVL3 (arXiv 2504.10479).
    """

    model_class = InternVLForConditionalGeneration
    config_class = InternVLConfig
    processor_class = InternVLProcessor
    image_text = "<IMG_CONTEXT>"
    reserved = ("<placeholder>", "<video>", "<img>", "</img>")
    template = replace(CHATML, first=CHATML.first.replace("{image}", "{image}\n"), image_join="\n")

    @property
    def facts(self) -> LMMFacts:
        """See :class:`Family`."""
        text, vision = self.config.text_config, self.config.vision_config
        rows, cols = (side // patch for side, patch in zip(vision.image_size, vision.patch_size, strict=True))
        return LMMFacts(
            num_layers=text.num_hidden_layers,
            num_heads=text.num_attention_heads,
            hidden_size=text.hidden_size,
            vision=VisionFacts(
                vision.num_hidden_layers, vision.hidden_size, vision.patch_size[0], (rows, cols)
            ),
            parts={
                "vision": ("model.vision_tower",),
                "llm": ("model.language_model",),
                "projector": ("model.multi_modal_projector",),
            },
            num_levels=2,
            windows=decoder_windows(text),
            lora_targets={
                "vision": {**LEAVES, "attention": ("q_proj", "k_proj", "v_proj", "projection_layer")},
                "projector": {"all-linear": None},
            },
        )

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """See :class:`HubFamily`."""
        return (3, *self.config.vision_config.image_size)

    def check_config(self, source: str) -> None:
        """See :class:`Family`."""
        vision, layer = self.config.vision_config, self.config.vision_feature_layer
        strategy = self.config.vision_feature_select_strategy
        if (layer, strategy) != (-1, "default"):
            raise ConfigError(
                f"{source}: vision_feature_layer is {layer!r} and vision_feature_select_strategy {strategy!r}; "
                "published InternVL models have -1 and 'default', and transformers can run no other"
            )
        if len(set(vision.image_size)) > 1 or len(set(vision.patch_size)) > 1:
            raise ConfigError(
                f"{source}: vision_config has image_size {vision.image_size} and patch_size {vision.patch_size}; "
                "tiles and patches must be square"
            )

    def split_images(
        self, processor: ProcessorMixin, outputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[Tensor, PatchGrid, dict[str, Tensor]]]:
        """See :class:`HubFamily`."""
        vision, tiling = self.config.vision_config, processor.image_processor
        side = vision.image_size[0]
        base = int(side // vision.patch_size[0] * self.config.downsample_ratio)
        grids = []
        for size in sizes:
            # The processor's own choice; columns come first.
            cols, rows = get_optimal_tiled_canvas(size, (side, side), tiling.min_patches, tiling.max_patches)
            resized = rows * side, cols * side
            fine = GridLevel(rows * base, cols * base, tiles=(rows, cols))
            tiled = rows * cols > 1
            levels = (fine, GridLevel(base, base)) if tiled else (fine,)
            grids.append(
                PatchGrid(
                    size, resized, 0, 0, resized, levels,
                    stack=(1, 0) if tiled else (0, 0), view=self.facts.vision.grid,
                )
            )  # fmt: skip
        counts = [grid.num_tokens // base**2 for grid in grids]
        pixels = outputs["pixel_values"].split(counts)
        return [(values, grid, {}) for values, grid in zip(pixels, grids, strict=True)]

    def tower_blocks(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """See :class:`Family`."""
        return model.model.vision_tower.encoder.layer

    def features(self, model: PreTrainedModel, images: Sequence[ImageInputs]) -> list[Features]:
        """See :class:`Family`; the class token leads."""
        tiles = [len(image.pixel_values) for image in images]
        states = model.model.vision_tower(torch.cat([image.pixel_values for image in images]))
        return [Features(part) for part in states.last_hidden_state[:, 1:].split(tiles)]

    def project(
        self, model: PreTrainedModel, features: Sequence[Features], images: Sequence[ImageInputs]
    ) -> list[Tensor]:
        """See :class:`Family`."""
        inner = model.model
        states = torch.cat([found.states for found in features]).unflatten(1, self.facts.vision.grid)
        shuffled = inner.pixel_shuffle(states, scale_factor=self.config.downsample_ratio)
        tokens = inner.multi_modal_projector(shuffled.flatten(1, 2))
        return [part.flatten(0, 1) for part in tokens.split([len(found.states) for found in features])]

    def view_maps(self, states: Tensor, images: Sequence[ImageInputs]) -> list[Tensor]:
        """See :class:`Family`; an image's last tile shows the whole of it."""
        views = states.split([len(image.pixel_values) for image in images])
        return [tiles[-1, 1:].T.unflatten(1, self.facts.vision.grid) for tiles in views]


@MODELS.register_module()
class InternVLAdapter(LMM):
    """InternVL3. See :class:`~flmm_detseg.lmms.lmm.LMM`."""

    family_class = InternVL
