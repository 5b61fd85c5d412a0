"""DeepSeek-VL 1.3B."""

from tiny_families import LLAMA, tokenizer
from transformers import DeepseekVLImageProcessorFast, DeepseekVLProcessor, PreTrainedTokenizerFast

from flmm_detseg.lmms.families.deepseek_vl import DeepseekVLAdapter

SIGLIP = dict(
    model_type="siglip_vision_model",
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    image_size=96,
    patch_size=16,
)


def build(**arguments) -> DeepseekVLAdapter:
    """A square of 6 x 6 patches."""
    words = tokenizer(PreTrainedTokenizerFast, ["<image_placeholder>"], image_token="<image_placeholder>")
    images = DeepseekVLImageProcessorFast(
        size={"height": 96, "width": 96}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    config = dict(
        text_config=dict(LLAMA, model_type="llama"),
        vision_config=SIGLIP,
        image_token_id=4,
        tie_word_embeddings=False,
    )
    processor = DeepseekVLProcessor(images, words, num_image_tokens=36)
    return DeepseekVLAdapter.from_config(config, **{"tokenizer": processor, **arguments})
