"""Qwen2.5-VL."""

from tiny_families import LLAMA
from tiny_qwen3_vl import qwen_words
from transformers import (
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorFast,
    Qwen2VLVideoProcessor,
)

from flmm_detseg.lmms.families.qwen2_5_vl import Qwen2_5VLAdapter
from flmm_detseg.lmms.lmm import LMM


def build(**arguments) -> LMM:
    """Windows of 2 x 2 tokens; the second of three tower blocks sees the whole image."""
    words = qwen_words()
    images = Qwen2VLImageProcessorFast(
        patch_size=16, size={"shortest_edge": 64 * 64, "longest_edge": 320 * 320}
    )
    config = dict(
        text_config=dict(
            LLAMA,
            model_type="qwen2_5_vl_text",
            rope_scaling={"rope_type": "default", "mrope_section": [2, 1, 1]},
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
            window_size=64,
            fullatt_block_indexes=[1],
        ),
        image_token_id=4,
        video_token_id=5,
        vision_start_token_id=6,
        vision_end_token_id=7,
    )
    processor = Qwen2_5_VLProcessor(images, words, Qwen2VLVideoProcessor())
    return Qwen2_5VLAdapter.from_config(config, **{"tokenizer": processor, **arguments})
