"""LLaVA-OneVision."""

from tiny_deepseek_vl import SIGLIP
from tiny_families import LLAMA, tokenizer
from transformers import (
    LlavaOnevisionImageProcessorFast,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
)

from flmm_detseg.lmms.families.llava_onevision import LlavaOnevisionAdapter

PINPOINTS = [[48 * down, 48 * across] for down in (1, 2, 3) for across in (1, 2, 3)]


def build(**arguments) -> LlavaOnevisionAdapter:
    """Tiles of 3 x 3 tokens; maps of more than two tiles are made smaller."""
    words = tokenizer(
        PreTrainedTokenizerFast,
        ["<image>", "<video>", "<|im_start|>", "<|im_end|>"],
        image_token="<image>",
        video_token="<video>",
    )
    images = LlavaOnevisionImageProcessorFast(
        size={"height": 48, "width": 48},
        image_grid_pinpoints=PINPOINTS,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    config = dict(
        text_config=dict(LLAMA, model_type="qwen2"),
        vision_config=dict(SIGLIP, image_size=48, vision_use_head=False),
        image_token_index=4,
        video_token_index=5,
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio="anyres_max_2",
    )
    processor = LlavaOnevisionProcessor(
        images,
        words,
        LlavaOnevisionVideoProcessor(),
        num_image_tokens=9,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_2",
    )
    return LlavaOnevisionAdapter.from_config(config, **{"tokenizer": processor, **arguments})
