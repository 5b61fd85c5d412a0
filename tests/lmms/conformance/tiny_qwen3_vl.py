"""Qwen3-VL."""

from tiny_families import LLAMA, tokenizer
from transformers import (
    Qwen2TokenizerFast,
    Qwen2VLImageProcessorFast,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from flmm_detseg.lmms.families.qwen3_vl import Qwen3VLAdapter
from flmm_detseg.lmms.lmm import LMM

SPECIAL = [
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|im_start|>",
    "<|im_end|>",
]


def qwen_words() -> Qwen2TokenizerFast:
    """Words of the Qwen-VL families."""
    return tokenizer(
        Qwen2TokenizerFast,
        SPECIAL,
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
        vision_start_token="<|vision_start|>",
        vision_end_token="<|vision_end|>",
    )


def build(**arguments) -> LMM:
    """Three tower blocks, the first two feed DeepStack."""
    words = qwen_words()
    images = Qwen2VLImageProcessorFast(
        patch_size=16, size={"shortest_edge": 64 * 64, "longest_edge": 320 * 320}
    )
    config = dict(
        text_config=dict(
            LLAMA,
            model_type="qwen3_vl_text",
            head_dim=8,
            rope_scaling={"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True},
        ),
        vision_config=dict(
            depth=3,
            hidden_size=32,
            intermediate_size=48,
            num_heads=4,
            patch_size=16,
            spatial_merge_size=2,
            temporal_patch_size=2,
            out_hidden_size=32,
            num_position_embeddings=64,
            deepstack_visual_indexes=[0, 1],
        ),
        image_token_id=4,
        video_token_id=5,
        vision_start_token_id=6,
        vision_end_token_id=7,
    )
    processor = Qwen3VLProcessor(images, words, Qwen3VLVideoProcessor())
    return Qwen3VLAdapter.from_config(config, **{"tokenizer": processor, **arguments})
