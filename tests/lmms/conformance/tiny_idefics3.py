"""Idefics3."""

import transformers
from tiny_families import LLAMA, tokenizer
from transformers import Idefics3Processor, PreTrainedTokenizerFast

from flmm_detseg.lmms.families.idefics3 import Idefics3Adapter

SPECIAL = [
    "<image>",
    "<fake_token_around_image>",
    "<end_of_utterance>",
    "<global-img>",
    *(f"<row_{row}_col_{col}>" for row in range(1, 4) for col in range(1, 4)),
]


def build(**arguments) -> Idefics3Adapter:
    """Tiles of 56 pixels, 2 x 2 tokens each; the long side three of them."""
    words = tokenizer(PreTrainedTokenizerFast, SPECIAL)
    # Transformers 5 reads the one that resizes with Pillow, which is 4's, from a folder.
    kind = getattr(transformers, "Idefics3ImageProcessorPil", transformers.Idefics3ImageProcessor)
    images = kind(size={"longest_edge": 168}, max_image_size={"longest_edge": 56}, resample=3)
    config = dict(
        text_config=dict(LLAMA, model_type="llama"),
        vision_config=dict(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=56,
            patch_size=14,
        ),
        image_token_id=4,
        pad_token_id=0,
        scale_factor=2,
    )
    processor = Idefics3Processor(images, words, image_seq_len=4)
    return Idefics3Adapter.from_config(config, **{"tokenizer": processor, **arguments})
