"""Qwen3-VL (transformers' ``Qwen3VLForConditionalGeneration``): DeepStack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from flmm_detseg.compat.transformers5 import merged_tokens
from flmm_detseg.lmms.chat import CHATML
from flmm_detseg.lmms.family import Features
from flmm_detseg.lmms.lmm import LMM
from flmm_detseg.lmms.qwen_family import QwenFamily
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import ImageInputs


class Qwen3VL(QwenFamily):
    """Features of some tower blocks go into the first decoder layers.

    Source: Qwen3-VL technical report (arXiv 2511.21631); DeepStack (arXiv 2406.04334).
    """

    model_class = Qwen3VLForConditionalGeneration
    config_class = Qwen3VLConfig
    processor_class = Qwen3VLProcessor
    template = CHATML
    projectors = ("model.visual.merger", "model.visual.deepstack_merger_list")

    def features(self, model: PreTrainedModel, images: Sequence[ImageInputs]) -> list[Features]:
        """See :class:`Family`; the merger is part of the tower's pass."""
        shapes = torch.cat([image.further["image_grid_thw"] for image in images])
        output = model.model.visual(torch.cat([image.pixel_values for image in images]), grid_thw=shapes)
        merged, deep = merged_tokens(output)
        counts = [image.grid.num_tokens for image in images]
        layers = zip(*(states.split(counts) for states in deep), strict=True) if deep else [()] * len(images)
        return [
            Features(states, tuple(further))
            for states, further in zip(merged.split(counts), layers, strict=True)
        ]

    def decoder_arguments(self, features: Sequence[Features], image_mask: Tensor) -> dict[str, Any]:
        """See :class:`Family`."""
        layers = [torch.cat(layer) for layer in zip(*(found.deep for found in features), strict=True)]
        return {"visual_pos_masks": image_mask, "deepstack_visual_embeds": layers} if layers else {}


@MODELS.register_module()
class Qwen3VLAdapter(LMM):
    """Qwen3-VL. See :class:`~flmm_detseg.lmms.lmm.LMM`."""

    family_class = Qwen3VL
