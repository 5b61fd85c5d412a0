"""Qwen2.5-VL (transformers' ``Qwen2_5_VLForConditionalGeneration``): most tower blocks look within windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)

from flmm_detseg.compat.transformers5 import merged_tokens
from flmm_detseg.lmms.chat import CHATML
from flmm_detseg.lmms.family import Features
from flmm_detseg.lmms.lmm import LMM
from flmm_detseg.lmms.qwen_family import QwenFamily
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import ImageInputs


class Qwen2_5VL(QwenFamily):  # noqa: N801 (the model's own name)
    """The tower has an image's tokens window after window.

    Source: Qwen2.5-VL technical report (arXiv 2502.13923).
    """

    model_class = Qwen2_5_VLForConditionalGeneration
    config_class = Qwen2_5_VLConfig
    processor_class = Qwen2_5_VLProcessor
    template = replace(
        CHATML, first=f"<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{CHATML.first}"
    )

    def features(self, model: PreTrainedModel, images: Sequence[ImageInputs]) -> list[Features]:
        """See :class:`Family`; the merger is part of the tower's pass, and puts the tokens in order."""
        shapes = torch.cat([image.further["image_grid_thw"] for image in images])
        output = model.model.visual(torch.cat([image.pixel_values for image in images]), grid_thw=shapes)
        merged, _ = merged_tokens(output)
        return [Features(part) for part in merged.split([image.grid.num_tokens for image in images])]

    def token_order(self, rows: int, cols: int) -> Tensor:
        """See :class:`QwenFamily`: window after window, row by row inside of each."""
        vision = self.config.vision_config
        side = vision.window_size // vision.spatial_merge_size // vision.patch_size
        window = torch.arange(rows)[:, None] // side * cols + torch.arange(cols) // side
        return window.flatten().argsort(stable=True)


@MODELS.register_module()
class Qwen2_5VLAdapter(LMM):  # noqa: N801 (as above)
    """Qwen2.5-VL. See :class:`~flmm_detseg.lmms.lmm.LMM`."""

    family_class = Qwen2_5VL
