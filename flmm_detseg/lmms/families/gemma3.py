"""Gemma 3 (transformers' ``Gemma3ForConditionalGeneration``): windows, image tokens that see each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    PreTrainedModel,
    ProcessorMixin,
)

from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.chat import ChatTemplate
from flmm_detseg.lmms.family import LEAVES, Features, LMMFacts, VisionFacts, decoder_windows
from flmm_detseg.lmms.hub_family import HubFamily
from flmm_detseg.lmms.lmm import LMM
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import GridLevel, ImageInputs, LMMInputs, PatchGrid

_FULL = "full_attention"


class Gemma3(HubFamily):
    """The image squashed to a square, averaged down to a fixed number of tokens; pan and scan is left out.

    Five of six decoder layers look back a window only, so rows are read from the others. The projector has no linear
    layer, so it takes no LoRA.

    Source: Gemma 3 technical report (arXiv 2503.19786).
    """

    model_class = Gemma3ForConditionalGeneration
    config_class = Gemma3Config
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
        side = self.config.vision_config.image_size
        level = GridLevel(*(math.isqrt(self.config.mm_tokens_per_image),) * 2)
        found: list[tuple[Tensor, PatchGrid, dict[str, Tensor]]] = []
        for size, values in zip(sizes, outputs["pixel_values"], strict=True):
            grid = PatchGrid(size, (side, side), 0, 0, (side, side), (level,), view=self.facts.vision.grid)
            found.append((values[None], grid, {}))
        return found

    def tower_blocks(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """See :class:`Family`."""
        return model.model.vision_tower.vision_model.encoder.layers

    def features(self, model: PreTrainedModel, images: Sequence[ImageInputs]) -> list[Features]:
        """See :class:`Family`."""
        states = model.model.vision_tower(torch.cat([image.pixel_values for image in images]))
        return [Features(part) for part in states.last_hidden_state]

    def project(
        self, model: PreTrainedModel, features: Sequence[Features], images: Sequence[ImageInputs]
    ) -> list[Tensor]:
        """See :class:`Family`."""
        return list(model.model.multi_modal_projector(torch.stack([found.states for found in features])))

    def view_maps(self, states: Tensor, images: Sequence[ImageInputs]) -> list[Tensor]:
        """See :class:`Family`."""
        return [part.T.unflatten(1, self.facts.vision.grid) for part in states]

    def own_inputs(self, item: LMMInputs) -> dict[str, Tensor]:
        """See :class:`Family`; token types say which tokens see each other."""
        return {**super().own_inputs(item), "token_type_ids": item.image_mask[None].long()}


@MODELS.register_module()
class Gemma3Adapter(LMM):
    """Gemma 3. See :class:`~flmm_detseg.lmms.lmm.LMM`."""

    family_class = Gemma3
