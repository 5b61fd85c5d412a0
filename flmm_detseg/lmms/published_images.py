"""How the published LMMs of our recipes cut an image, by their own processors at the published settings."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers import (
    DeepseekVLHybridImageProcessor,
    DeepseekVLImageProcessor,
    Gemma3ImageProcessor,
    GotOcr2ImageProcessorFast,
    Idefics3ImageProcessor,
    Lfm2VlImageProcessorFast,
    LlavaOnevisionImageProcessor,
    Qwen2VLImageProcessorFast,
    SmolVLMImageProcessor,
)
from transformers.image_processing_utils import BaseImageProcessor

from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.clip_family import ClipFamily
from flmm_detseg.lmms.family import Family
from flmm_detseg.lmms.hub_family import HubFamily
from flmm_detseg.lmms.processors import ProcessorSettings
from flmm_detseg.lmms.weights.loading import load_tokenizer
from flmm_detseg.structures import PatchGrid
from flmm_detseg.utils.configs import TINY_LMM
from flmm_detseg.utils.paths import find


def _tiles(side: int) -> dict[str, dict[str, int]]:
    """Idefics3's settings for tiles of a side, four along the image's longer one."""
    return dict(size=dict(longest_edge=4 * side), max_image_size=dict(longest_edge=side))


# How transformers' processor cuts an image, by the beginning of a model's name.
IMAGES: dict[str, Callable[[], BaseImageProcessor]] = {
    "llava-hf/llava-onevision": LlavaOnevisionImageProcessor,
    "Qwen/Qwen2.5-VL": lambda: Qwen2VLImageProcessorFast(
        patch_size=14, size=dict(shortest_edge=3136, longest_edge=12845056)
    ),
    "Qwen/Qwen3-VL": lambda: Qwen2VLImageProcessorFast(
        patch_size=16, size=dict(shortest_edge=65536, longest_edge=16777216)
    ),
    "OpenGVLab/": lambda: GotOcr2ImageProcessorFast(size=dict(height=448, width=448), crop_to_patches=True),
    "HuggingFaceTB/SmolVLM2-2.2B": lambda: SmolVLMImageProcessor(**_tiles(384)),
    "HuggingFaceTB/SmolVLM2-256M": lambda: SmolVLMImageProcessor(**_tiles(512)),
    "HuggingFaceTB/SmolVLM2-500M": lambda: SmolVLMImageProcessor(**_tiles(512)),
    "HuggingFaceM4/": lambda: Idefics3ImageProcessor(**_tiles(364)),
    "google/gemma-3": lambda: Gemma3ImageProcessor(size=dict(height=896, width=896)),
    "LiquidAI/": Lfm2VlImageProcessorFast,
    "deepseek-community/deepseek-vl-1.3b": DeepseekVLImageProcessor,
    "deepseek-community/deepseek-vl-7b": DeepseekVLHybridImageProcessor,
}


class CutImage(NamedTuple):
    """An image as an LMM gets it.

    Attributes:
        grid: Where its tokens lie.
        patches: That the vision tower reads, of all views.
    """

    grid: PatchGrid
    patches: int


def cut_image(family: Family, name: str, image_size: tuple[int, int]) -> CutImage:
    """Cuts an image by a published model's own processor.

    Args:
        family: With the model's config.
        name: The model's name on the hub.
        image_size: ``(H, W)`` of the image, pixels; its content does not matter.

    Returns:
        Where its tokens lie, and how many patches the tower reads.

    Raises:
        ConfigError: How the model's processor is set is not known here.
    """
    image = np.zeros((*image_size, 3), np.uint8)
    if isinstance(family, ClipFamily):
        # A CLIP LLaVA's pixels are our own; the words of the tokenizer play no part in them.
        words = load_tokenizer(str(find(TINY_LMM)))
        family.config.image_token_id = words.convert_tokens_to_ids("<image>")
        prepared = family.build_processor(words, ProcessorSettings()).prepare_image(image)
        return CutImage(prepared.grid, _patches(prepared.pixel_values, family))
    make = next((make for start, make in IMAGES.items() if name.startswith(start)), None)
    if make is None or not isinstance(family, HubFamily):
        raise ConfigError(
            f"how {name} cuts an image is not among the published models' settings "
            "(flmm_detseg/lmms/published_images.py); add it there"
        )
    own: Any = SimpleNamespace(image_processor=make())
    picture = family.fit_image(own, Image.fromarray(image))
    outputs = own.image_processor([picture], return_tensors="pt", **family.arguments(own))
    ((_, grid, _),) = family.split_images(own, outputs, [image_size])
    return CutImage(grid, _patches(outputs["pixel_values"], family))


def _patches(pixels: torch.Tensor, family: Family) -> int:
    """Patches of all views: of pixels ``[..., 3, H, W]``, or of rows ``[..., patch, values]`` of a patch each."""
    if isinstance(family, ClipFamily) or pixels.ndim >= 4:
        return pixels.numel() // (3 * family.facts.vision.patch_size**2)
    return pixels.numel() // pixels.shape[-1]
