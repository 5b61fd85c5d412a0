"""InternVL3."""

from tiny_families import LLAMA, tokenizer
from transformers import (
    GotOcr2ImageProcessorFast,
    InternVLProcessor,
    InternVLVideoProcessor,
    PreTrainedTokenizerFast,
)

from flmm_detseg.lmms.families.internvl import InternVLAdapter

SPECIAL = ["<IMG_CONTEXT>", "<img>", "</img>", "<video>", "<|im_start|>", "<|im_end|>"]


TEXT = dict(LLAMA, model_type="qwen2")


def build(text: dict = TEXT, **arguments) -> InternVLAdapter:
    """Tiles of 56 pixels, 2 x 2 tokens each; ``text`` is the language model's config."""
    words = tokenizer(
        PreTrainedTokenizerFast,
        SPECIAL,
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    images = GotOcr2ImageProcessorFast(
        size={"height": 56, "width": 56},
        crop_to_patches=True,
        max_patches=6,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    config = dict(
        text_config=dict(text),
        vision_config=dict(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=[56, 56],
            patch_size=[14, 14],
        ),
        image_token_id=4,
        tie_word_embeddings=False,
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    processor = InternVLProcessor(images, words, InternVLVideoProcessor(), image_seq_length=4)
    return InternVLAdapter.from_config(config, **{"tokenizer": processor, **arguments})
