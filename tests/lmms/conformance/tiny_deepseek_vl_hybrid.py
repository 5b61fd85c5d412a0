"""DeepSeek-VL 7B."""

from tiny_deepseek_vl import SIGLIP
from tiny_families import LLAMA, tokenizer
from torch import nn
from transformers import (
    DeepseekVLHybridImageProcessorFast,
    DeepseekVLHybridProcessor,
    PreTrainedTokenizerFast,
)

from flmm_detseg.lmms.families.deepseek_vl import DeepseekVLHybridAdapter


def build(**arguments) -> DeepseekVLHybridAdapter:
    """A square of 6 x 6 patches, and the same square in 128 pixels for SAM's tower."""
    words = tokenizer(PreTrainedTokenizerFast, ["<image_placeholder>"], image_token="<image_placeholder>")
    images = DeepseekVLHybridImageProcessorFast(
        size={"height": 96, "width": 96},
        high_res_size={"height": 128, "width": 128},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        high_res_image_mean=[0.48, 0.46, 0.41],
        high_res_image_std=[0.27, 0.26, 0.28],
    )
    config = dict(
        text_config=dict(LLAMA, model_type="llama"),
        vision_config=SIGLIP,
        high_res_vision_config=dict(
            model_type="sam_vision_model",
            hidden_size=32,
            output_channels=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=128,
            patch_size=16,
            mlp_dim=48,
            global_attn_indexes=[1],
            window_size=4,
            num_pos_feats=8,
        ),
        image_token_id=4,
        tie_word_embeddings=False,
    )
    processor = DeepseekVLHybridProcessor(images, words, num_image_tokens=36)
    lmm = DeepseekVLHybridAdapter.from_config(config, **{"tokenizer": processor, **arguments})
    # Zero at random weights, and the features of an earlier block would count for nothing.
    nn.init.constant_(lmm.model.model.high_res_vision_alpha, 0.5)
    return lmm
