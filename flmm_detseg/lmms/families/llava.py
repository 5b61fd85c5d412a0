"""LLaVA-1.5 (transformers' ``LlavaForConditionalGeneration``)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration, PreTrainedTokenizerBase

from flmm_detseg.lmms.hf_adapter import HFLlavaAdapter
from flmm_detseg.lmms.processors import LlavaProcessor, ProcessorSettings
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import PatchGrid


@MODELS.register_module()
class LlavaAdapter(HFLlavaAdapter):
    """LLaVA-1.5: one square view, one grid level. See :class:`HFLlavaAdapter`."""

    model_class = LlavaForConditionalGeneration
    config_class = LlavaConfig

    @classmethod
    def build_processor(
        cls, config: LlavaConfig, tokenizer: PreTrainedTokenizerBase, settings: ProcessorSettings
    ) -> LlavaProcessor:
        """See :class:`HFLlavaAdapter`."""
        return LlavaProcessor(
            tokenizer,
            image_token_id=config.image_token_id,
            image_side=config.vision_config.image_size,
            patch_size=config.vision_config.patch_size,
            settings=settings,
        )

    def image_tokens(self, pixel_values: Sequence[Tensor], grids: Sequence[PatchGrid]) -> list[Tensor]:
        """See :class:`HFLlavaAdapter`."""
        return list(self.model.model.get_image_features(torch.stack(list(pixel_values))))

    def base_views(self, pixel_values: Sequence[Tensor]) -> list[int]:
        """See :class:`HFLlavaAdapter`."""
        return list(range(len(pixel_values)))

    def generation_inputs(self, pixel_values: Tensor, grid: PatchGrid) -> dict[str, Tensor]:
        """See :class:`HFLlavaAdapter`."""
        return {"pixel_values": pixel_values[None]}
