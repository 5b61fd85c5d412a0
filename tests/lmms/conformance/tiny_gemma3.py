"""Gemma 3."""

from tiny_families import LLAMA, tokenizer
from transformers import Gemma3ImageProcessor, Gemma3Processor, PreTrainedTokenizerFast

from flmm_detseg.lmms.families.gemma3 import Gemma3Adapter

SPECIAL = ["<image_soft_token>", "<start_of_image>", "<end_of_image>", "<start_of_turn>", "<end_of_turn>"]


def build(kind: type[Gemma3Adapter] = Gemma3Adapter, **arguments) -> Gemma3Adapter:
    """Two of three layers look back 24 positions, which is less than a prompt."""
    words = tokenizer(
        PreTrainedTokenizerFast,
        SPECIAL,
        image_token="<image_soft_token>",
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
    )
    config = dict(
        text_config=dict(
            LLAMA,
            model_type="gemma3_text",
            head_dim=16,
            sliding_window=24,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            query_pre_attn_scalar=16,
        ),
        vision_config=dict(
            model_type="siglip_vision_model",
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=112,
            patch_size=14,
            vision_use_head=False,
        ),
        mm_tokens_per_image=16,
        image_token_index=4,
        boi_token_index=5,
        eoi_token_index=6,
    )
    images = Gemma3ImageProcessor(size={"height": 112, "width": 112}, pan_and_scan_min_crop_size=32)
    processor = Gemma3Processor(images, words, image_seq_length=16)
    return kind.from_config(config, **{"tokenizer": processor, **arguments})
