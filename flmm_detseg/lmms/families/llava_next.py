"""LLaVA-NeXT (transformers' ``LlavaNextForConditionalGeneration``)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, PreTrainedTokenizerBase

from flmm_detseg.lmms.hf_adapter import HFLlavaAdapter
from flmm_detseg.lmms.processors import LlavaNextProcessor, ProcessorSettings
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import PatchGrid


@MODELS.register_module()
class LlavaNextAdapter(HFLlavaAdapter):
    """LLaVA-NeXT: a coarse view and fine tiles; the stack holds all coarse channels, then all fine ones.

    See :class:`HFLlavaAdapter`.
    """

    model_class = LlavaNextForConditionalGeneration
    config_class = LlavaNextConfig
    num_levels = 2

    @classmethod
    def build_processor(
        cls, config: LlavaNextConfig, tokenizer: PreTrainedTokenizerBase, settings: ProcessorSettings
    ) -> LlavaNextProcessor:
        """See :class:`HFLlavaAdapter`."""
        return LlavaNextProcessor(
            tokenizer,
            pinpoints=config.image_grid_pinpoints,
            image_token_id=config.image_token_id,
            image_side=config.vision_config.image_size,
            patch_size=config.vision_config.patch_size,
            settings=settings,
        )

    def image_tokens(self, pixel_values: Sequence[Tensor], grids: Sequence[PatchGrid]) -> list[Tensor]:
        """See :class:`HFLlavaAdapter`."""
        image_sizes = torch.tensor([grid.image_size for grid in grids])
        return list(self.model.model.get_image_features(torch.cat(list(pixel_values)), image_sizes))

    def base_views(self, pixel_values: Sequence[Tensor]) -> list[int]:
        """See :class:`HFLlavaAdapter`."""
        return list(accumulate((len(tiles) for tiles in pixel_values[:-1]), initial=0))

    def generation_inputs(self, pixel_values: Tensor, grid: PatchGrid) -> dict[str, Tensor]:
        """See :class:`HFLlavaAdapter`."""
        return {"pixel_values": pixel_values[None], "image_sizes": torch.tensor([grid.image_size])}
