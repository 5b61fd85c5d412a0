"""Gemma 3 (transformers' ``Gemma3ForConditionalGeneration``): windows, two-way attention of images, pan and scan."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    PreTrainedModel,
    ProcessorMixin,
)

from flmm_detseg.compat.transformers5 import tower_body
from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.chat import ChatTemplate
from flmm_detseg.lmms.family import LEAVES, Features, LMMFacts, VisionFacts, decoder_windows
from flmm_detseg.lmms.hub_family import HubFamily
from flmm_detseg.lmms.lmm import LMM
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import GridLevel, ImageInputs, LMMInputs, PatchGrid

_FULL = "full_attention"
# Least side of a crop in pixels, most crops, least ratio of the sides of an image that is cropped.
_PAN_AND_SCAN = MappingProxyType(
    {
        "pan_and_scan_min_crop_size": 256,
        "pan_and_scan_max_num_crops": 4,
        "pan_and_scan_min_ratio_to_activate": 1.2,
    }
)


class Gemma3(HubFamily):
    """The image squashed to a square, averaged down to a fixed number of tokens.

    Five of six decoder layers look back a window only, so rows are read from the others. The projector has no linear
    layer, so it takes no LoRA.

    Source: Gemma 3 technical report (arXiv 2503.19786).
    """

    model_class = Gemma3ForConditionalGeneration
    config_class = Gemma3Config
    num_levels = 1
    processor_class = Gemma3Processor
    image_text = "<start_of_image>"
    template = ChatTemplate(
        first="<start_of_turn>user\n{image}{prompt}<end_of_turn>\n<start_of_turn>model\n",
        later="\n<start_of_turn>user\n{prompt}<end_of_turn>\n<start_of_turn>model\n",
        answer_lead="",
        turn_end="<end_of_turn>",
        image_join="",
    )

    @property
    def facts(self) -> LMMFacts:
        """See :class:`Family`."""
        text, vision = self.config.text_config, self.config.vision_config
        side = vision.image_size // vision.patch_size
        kinds = list(text.layer_types)
        full = tuple(layer for layer, kind in enumerate(kinds) if kind == _FULL)
        return LMMFacts(
            num_layers=text.num_hidden_layers,
            num_heads=text.num_attention_heads,
            hidden_size=text.hidden_size,
            vision=VisionFacts(vision.num_hidden_layers, vision.hidden_size, vision.patch_size, (side, side)),
            parts={
                "vision": ("model.vision_tower",),
                "llm": ("model.language_model",),
                "projector": ("model.multi_modal_projector",),
            },
            num_levels=self.num_levels,
            windows=decoder_windows(text),
            image_attention="both",
            row_layers=full or None,
            lora_targets={"vision": LEAVES, "projector": {}},
        )

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """See :class:`HubFamily`."""
        side = self.config.vision_config.image_size
        return (3, side, side)

    def check_config(self, source: str) -> None:
        """See :class:`Family`."""
        side = math.isqrt(self.config.mm_tokens_per_image)
        if side**2 != self.config.mm_tokens_per_image:
            raise ConfigError(
                f"{source}: mm_tokens_per_image is {self.config.mm_tokens_per_image}; image tokens must make a square"
            )

    def split_images(
        self, processor: ProcessorMixin, outputs: Mapping[str, Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[Tensor, PatchGrid, dict[str, Tensor]]]:
        """See :class:`HubFamily`."""
        side, tokens = self.config.vision_config.image_size, math.isqrt(self.config.mm_tokens_per_image)
        whole, grids = GridLevel(tokens, tokens), []
        for size in sizes:
            crops = self._crops(processor, size)
            down, across = crops or (1, 1)
            levels: tuple[GridLevel, ...] = (whole,)
            if crops is not None:
                levels = (whole, GridLevel(down * tokens, across * tokens, tiles=crops))
            frame = down * side, across * side
            stack = (0, len(levels) - 1)[-self.num_levels :]
            grids.append(
                PatchGrid(size, frame, 0, 0, frame, levels, stack=stack, view=self.facts.vision.grid)
            )
        pixels = outputs["pixel_values"].split([grid.num_tokens // tokens**2 for grid in grids])
        return [(values, grid, {}) for values, grid in zip(pixels, grids, strict=True)]

    def _crops(self, processor: ProcessorMixin, size: tuple[int, int]) -> tuple[int, int] | None:
        """``(rows, cols)`` of crops that follow the whole image; None: none."""
        return None

    def tower_blocks(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """See :class:`Family`."""
        return tower_body(model.model.vision_tower).encoder.layers

    def features(self, model: PreTrainedModel, images: Sequence[ImageInputs]) -> list[Features]:
        """See :class:`Family`."""
        views = [len(image.pixel_values) for image in images]
        states = model.model.vision_tower(torch.cat([image.pixel_values for image in images]))
        return [Features(part) for part in states.last_hidden_state.split(views)]

    def project(
        self, model: PreTrainedModel, features: Sequence[Features], images: Sequence[ImageInputs]
    ) -> list[Tensor]:
        """See :class:`Family`."""
        tokens = model.model.multi_modal_projector(torch.cat([found.states for found in features]))
        return [part.flatten(0, 1) for part in tokens.split([len(found.states) for found in features])]

    def view_maps(self, states: Tensor, images: Sequence[ImageInputs]) -> list[Tensor]:
        """See :class:`Family`; an image's first view shows the whole of it."""
        views = states.split([len(image.pixel_values) for image in images])
        return [part[0].T.unflatten(1, self.facts.vision.grid) for part in views]

    def own_inputs(self, item: LMMInputs) -> dict[str, Tensor]:
        """See :class:`Family`; token types say which tokens see each other."""
        return {**super().own_inputs(item), "token_type_ids": item.image_mask[None].long()}


class Gemma3Pan(Gemma3):
    """Of a long image, two to four crops follow in a row or a column (pan and scan).

    The one level of an image without crops stands for both. Words stand between the whole image and its crops, and
    tokens of a crop see each other. The settings of pan and scan are those stored with the model, else transformers'
    own.
    """

    num_levels = 2

    def arguments(self, processor: ProcessorMixin) -> dict[str, Any]:
        """See :class:`HubFamily`."""
        own, given = processor.image_processor, {}
        for name, default in _PAN_AND_SCAN.items():
            stored = getattr(own, name, None)
            given[name] = default if stored is None else stored
        return {"do_pan_and_scan": True, **given}

    def _crops(self, processor: ProcessorMixin, size: tuple[int, int]) -> tuple[int, int] | None:
        least, most, ratio = (self.arguments(processor)[name] for name in _PAN_AND_SCAN)
        longer, shorter = max(size), min(size)
        if longer / shorter < ratio:
            return None
        count = min(most, max(2, min(longer // least, math.floor(longer / shorter + 0.5))))
        if min(math.ceil(longer / count), shorter) < least:
            return None
        return (1, count) if size[1] >= size[0] else (count, 1)


@MODELS.register_module()
class Gemma3Adapter(LMM):
    """Gemma 3. See :class:`~flmm_detseg.lmms.lmm.LMM`."""

    family_class = Gemma3


@MODELS.register_module()
class Gemma3PanAdapter(Gemma3Adapter):
    """Gemma 3 with pan and scan. See :class:`~flmm_detseg.lmms.lmm.LMM`."""

    family_class = Gemma3Pan
