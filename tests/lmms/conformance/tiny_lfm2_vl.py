"""LFM2-VL."""

from tiny_families import LLAMA, tokenizer
from transformers import Lfm2VlImageProcessorFast, Lfm2VlProcessor, PreTrainedTokenizerFast

from flmm_detseg.lmms.families.lfm2_vl import Lfm2VlAdapter

SPECIAL = [
    "<image>",
    "<|image_start|>",
    "<|image_end|>",
    "<|img_thumbnail|>",
    "<|startoftext|>",
    "<|im_start|>",
    "<|im_end|>",
]


def build(**arguments) -> Lfm2VlAdapter:
    """Convolution, attention, convolution, attention; tiles of 64 pixels, 2 x 2 tokens each."""
    words = tokenizer(
        PreTrainedTokenizerFast,
        SPECIAL,
        image_token="<image>",
        image_start_token="<|image_start|>",
        image_end_token="<|image_end|>",
        image_thumbnail="<|img_thumbnail|>",
    )
    images = Lfm2VlImageProcessorFast(
        encoder_patch_size=16,
        tile_size=64,
        min_image_tokens=2,
        max_image_tokens=8,
        max_tiles=6,
        max_pixels_tolerance=1.0,
    )
    config = dict(
        text_config=dict(
            {name: value for name, value in LLAMA.items() if name != "num_hidden_layers"},
            model_type="lfm2",
            num_hidden_layers=4,
            layer_types=["conv", "full_attention", "conv", "full_attention"],
        ),
        vision_config=dict(
            model_type="siglip2_vision_model",
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_patches=64,
            patch_size=16,
            vision_use_head=False,
        ),
        image_token_id=4,
        projector_hidden_size=48,
    )
    processor = Lfm2VlProcessor(images, words)
    return Lfm2VlAdapter.from_config(config, **{"tokenizer": processor, **arguments})
