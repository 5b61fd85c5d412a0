"""What the published LMMs of our recipes look like, as their hubs' files say: what their shapes follow from."""

from __future__ import annotations

from typing import Any, NamedTuple


class Published(NamedTuple):
    """What a hub's ``config.json`` says, as far as shapes depend on it, and what follows.

    Attributes:
        config: The fields.
        billions: Parameters of the LMM.
        num_layers: Of the language model.
        hidden_size: Of the language model.
        channels: Of the attention stack: layers with rows x heads x levels.
        vision_channels: Width of the vision tower.
        vision_grid: Its patches; None where they follow the image.
    """

    config: dict[str, Any]
    billions: float
    num_layers: int
    hidden_size: int
    channels: int
    vision_channels: int
    vision_grid: tuple[int, int] | None


QWEN2_7B = dict(
    model_type="qwen2",
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    vocab_size=152064,
)
SIGLIP_SO400M = dict(
    model_type="siglip_vision_model",
    hidden_size=1152,
    intermediate_size=4304,
    num_hidden_layers=27,
    num_attention_heads=16,
    patch_size=14,
    vision_use_head=False,
)
IDEFICS_VISION = dict(
    hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16, patch_size=14
)
SIGLIP_L = dict(
    model_type="siglip_vision_model",
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=384,
    patch_size=16,
)
SIGLIP_B = dict(
    hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, patch_size=16
)
LLAMA = dict(model_type="llama", vocab_size=102400)
VICUNA_13B = dict(
    model_type="llama",
    hidden_size=5120,
    intermediate_size=13824,
    num_hidden_layers=40,
    num_attention_heads=40,
    vocab_size=32064,
)
QWEN2_0_5B = dict(
    model_type="qwen2",
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
)
QWEN2_5_VISION = dict(depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16)
QWEN3 = dict(num_key_value_heads=8, head_dim=128, vocab_size=151936)
QWEN3_VL = dict(
    QWEN3,
    model_type="qwen3_vl_text",
    rope_scaling=dict(rope_type="default", mrope_section=[24, 20, 20], mrope_interleaved=True),
)
QWEN3_VISION = dict(
    depth=24,
    hidden_size=1024,
    intermediate_size=4096,
    num_heads=16,
    deepstack_visual_indexes=[5, 11, 17],
)
INTERN_VIT = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24)
LFM2 = dict(
    model_type="lfm2",
    num_hidden_layers=16,
    num_key_value_heads=8,
    layer_types=["full_attention" if i in (2, 5, 8, 10, 12, 14) else "conv" for i in range(16)],
)
# By the name under which a recipe loads it. Fields that are missing are transformers' own defaults.
PUBLISHED = {
    "llava-hf/llava-1.5-7b-hf": Published(
        dict(model_type="llava", text_config=dict(model_type="llama", vocab_size=32064)),
        7.1, 32, 4096, 1024, 1024, (24, 24),
    ),
    "llava-hf/llava-v1.6-vicuna-7b-hf": Published(
        dict(model_type="llava_next", text_config=dict(model_type="llama", vocab_size=32064)),
        7.1, 32, 4096, 2048, 1024, (24, 24),
    ),
    "llava-hf/llava-1.5-13b-hf": Published(
        dict(model_type="llava", text_config=VICUNA_13B), 13.4, 40, 5120, 1600, 1024, (24, 24)
    ),
    "llava-hf/llava-v1.6-vicuna-13b-hf": Published(
        dict(model_type="llava_next", text_config=VICUNA_13B), 13.4, 40, 5120, 3200, 1024, (24, 24)
    ),
    "llava-hf/llava-v1.6-mistral-7b-hf": Published(
        dict(
            model_type="llava_next",
            text_config=dict(model_type="mistral", vocab_size=32064, sliding_window=None),
        ),
        7.6, 32, 4096, 2048, 1024, (24, 24),
    ),
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": Published(
        dict(
            model_type="llava_onevision",
            text_config=QWEN2_7B,
            vision_config=dict(SIGLIP_SO400M, num_hidden_layers=26, image_size=384),
        ),
        8.0, 28, 3584, 1568, 1152, (27, 27),
    ),
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": Published(
        dict(
            model_type="llava_onevision",
            text_config=dict(QWEN2_0_5B, vocab_size=152000, tie_word_embeddings=True),
            vision_config=dict(SIGLIP_SO400M, num_hidden_layers=26, image_size=384),
            tie_word_embeddings=True,
        ),
        0.9, 24, 896, 672, 1152, (27, 27),
    ),
    "Qwen/Qwen2.5-VL-7B-Instruct": Published(
        dict(
            model_type="qwen2_5_vl",
            text_config=dict(
                QWEN2_7B,
                model_type="qwen2_5_vl_text",
                rope_scaling=dict(rope_type="default", mrope_section=[16, 24, 24]),
            ),
            vision_config=dict(QWEN2_5_VISION, out_hidden_size=3584),
        ),
        8.3, 28, 3584, 784, 1280, None,
    ),
    "Qwen/Qwen2.5-VL-3B-Instruct": Published(
        dict(
            model_type="qwen2_5_vl",
            text_config=dict(
                model_type="qwen2_5_vl_text",
                hidden_size=2048,
                intermediate_size=11008,
                num_hidden_layers=36,
                num_attention_heads=16,
                num_key_value_heads=2,
                vocab_size=151936,
                tie_word_embeddings=True,
                rope_scaling=dict(rope_type="default", mrope_section=[16, 24, 24]),
            ),
            vision_config=dict(QWEN2_5_VISION, out_hidden_size=2048),
        ),
        3.8, 36, 2048, 576, 1280, None,
    ),
    "Qwen/Qwen3-VL-2B-Instruct": Published(
        dict(
            model_type="qwen3_vl",
            text_config=dict(
                QWEN3_VL,
                hidden_size=2048,
                intermediate_size=6144,
                num_hidden_layers=28,
                num_attention_heads=16,
                tie_word_embeddings=True,
            ),
            vision_config=dict(QWEN3_VISION, out_hidden_size=2048),
        ),
        2.1, 28, 2048, 448, 1024, None,
    ),
    "Qwen/Qwen3-VL-4B-Instruct": Published(
        dict(
            model_type="qwen3_vl",
            text_config=dict(
                QWEN3_VL,
                hidden_size=2560,
                intermediate_size=9728,
                num_hidden_layers=36,
                num_attention_heads=32,
                tie_word_embeddings=True,
            ),
            vision_config=dict(QWEN3_VISION, out_hidden_size=2560),
        ),
        4.4, 36, 2560, 1152, 1024, None,
    ),
    "Qwen/Qwen3-VL-8B-Instruct": Published(
        dict(
            model_type="qwen3_vl",
            text_config=dict(
                QWEN3_VL,
                hidden_size=4096,
                intermediate_size=12288,
                num_hidden_layers=36,
                num_attention_heads=32,
            ),
            vision_config=dict(
                depth=27,
                hidden_size=1152,
                intermediate_size=4304,
                num_heads=16,
                out_hidden_size=4096,
                deepstack_visual_indexes=[8, 16, 24],
            ),
        ),
        8.8, 36, 4096, 1152, 1152, None,
    ),
    "OpenGVLab/InternVL3-1B-hf": Published(
        dict(
            model_type="internvl",
            text_config=dict(QWEN2_0_5B, vocab_size=151674),
            vision_config=INTERN_VIT,
        ),
        0.9, 24, 896, 672, 1024, (32, 32),
    ),
    "OpenGVLab/InternVL3-2B-hf": Published(
        dict(
            model_type="internvl",
            text_config=dict(
                QWEN2_0_5B,
                hidden_size=1536,
                intermediate_size=8960,
                num_hidden_layers=28,
                num_attention_heads=12,
                vocab_size=151674,
            ),
            vision_config=INTERN_VIT,
        ),
        2.1, 28, 1536, 672, 1024, (32, 32),
    ),
    "OpenGVLab/InternVL3-8B-hf": Published(
        dict(
            model_type="internvl",
            text_config=dict(QWEN2_7B, vocab_size=151674),
            vision_config=INTERN_VIT,
        ),
        7.9, 28, 3584, 1568, 1024, (32, 32),
    ),
    "OpenGVLab/InternVL3_5-8B-HF": Published(
        dict(
            model_type="internvl",
            text_config=dict(
                QWEN3,
                model_type="qwen3",
                hidden_size=4096,
                intermediate_size=12288,
                num_hidden_layers=36,
                num_attention_heads=32,
            ),
            vision_config=INTERN_VIT,
        ),
        8.5, 36, 4096, 2304, 1024, (32, 32),
    ),
    "OpenGVLab/InternVL3_5-1B-HF": Published(
        dict(
            model_type="internvl",
            text_config=dict(
                QWEN3,
                model_type="qwen3",
                hidden_size=1024,
                intermediate_size=3072,
                num_hidden_layers=28,
                num_attention_heads=16,
            ),
            vision_config=INTERN_VIT,
        ),
        1.1, 28, 1024, 896, 1024, (32, 32),
    ),
    "OpenGVLab/InternVL3_5-2B-HF": Published(
        dict(
            model_type="internvl",
            text_config=dict(
                QWEN3,
                model_type="qwen3",
                hidden_size=2048,
                intermediate_size=6144,
                num_hidden_layers=28,
                num_attention_heads=16,
            ),
            vision_config=INTERN_VIT,
        ),
        2.3, 28, 2048, 896, 1024, (32, 32),
    ),
    "OpenGVLab/InternVL3_5-4B-HF": Published(
        dict(
            model_type="internvl",
            text_config=dict(
                QWEN3,
                model_type="qwen3",
                hidden_size=2560,
                intermediate_size=9728,
                num_hidden_layers=36,
                num_attention_heads=32,
            ),
            vision_config=INTERN_VIT,
        ),
        4.7, 36, 2560, 2304, 1024, (32, 32),
    ),
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": Published(
        dict(
            model_type="smolvlm",
            text_config=dict(
                model_type="llama",
                hidden_size=2048,
                intermediate_size=8192,
                num_hidden_layers=24,
                num_attention_heads=32,
                vocab_size=49280,
            ),
            vision_config=dict(IDEFICS_VISION, image_size=384),
            scale_factor=3,
        ),
        2.2, 24, 2048, 1536, 1152, (27, 27),
    ),
    "HuggingFaceTB/SmolVLM2-256M-Video-Instruct": Published(
        dict(
            model_type="smolvlm",
            text_config=dict(
                model_type="llama",
                hidden_size=576,
                intermediate_size=1536,
                num_hidden_layers=30,
                num_attention_heads=9,
                num_key_value_heads=3,
                vocab_size=49280,
            ),
            vision_config=dict(SIGLIP_B, image_size=512),
            scale_factor=4,
        ),
        0.3, 30, 576, 540, 768, (32, 32),
    ),
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": Published(
        dict(
            model_type="smolvlm",
            text_config=dict(
                model_type="llama",
                hidden_size=960,
                intermediate_size=2560,
                num_hidden_layers=32,
                num_attention_heads=15,
                num_key_value_heads=5,
                vocab_size=49280,
            ),
            vision_config=dict(SIGLIP_B, image_size=512),
            scale_factor=4,
        ),
        0.5, 32, 960, 960, 768, (32, 32),
    ),
    "HuggingFaceM4/Idefics3-8B-Llama3": Published(
        dict(
            model_type="idefics3",
            text_config=dict(
                model_type="llama", intermediate_size=14336, num_key_value_heads=8, vocab_size=128259
            ),
            vision_config=dict(IDEFICS_VISION, image_size=364),
            scale_factor=2,
        ),
        8.5, 32, 4096, 2048, 1152, (26, 26),
    ),
    "google/gemma-3-4b-it": Published(
        dict(
            model_type="gemma3",
            text_config=dict(
                model_type="gemma3_text",
                hidden_size=2560,
                intermediate_size=10240,
                num_hidden_layers=34,
                sliding_window=1024,
            ),
            vision_config=dict(SIGLIP_SO400M, image_size=896),
        ),
        4.3, 34, 2560, 40, 1152, (64, 64),
    ),
    "google/gemma-3-12b-it": Published(
        dict(
            model_type="gemma3",
            text_config=dict(
                model_type="gemma3_text",
                hidden_size=3840,
                intermediate_size=15360,
                num_hidden_layers=48,
                num_attention_heads=16,
                num_key_value_heads=8,
                sliding_window=1024,
            ),
            vision_config=dict(SIGLIP_SO400M, image_size=896),
        ),
        12.2, 48, 3840, 128, 1152, (64, 64),
    ),
    "google/gemma-3-27b-it": Published(
        dict(
            model_type="gemma3",
            text_config=dict(
                model_type="gemma3_text",
                hidden_size=5376,
                intermediate_size=21504,
                num_hidden_layers=62,
                num_attention_heads=32,
                num_key_value_heads=16,
                head_dim=128,
                sliding_window=1024,
            ),
            vision_config=dict(SIGLIP_SO400M, image_size=896),
        ),
        27.4, 62, 5376, 320, 1152, (64, 64),
    ),
    "LiquidAI/LFM2-VL-1.6B": Published(
        dict(
            model_type="lfm2-vl",
            text_config=dict(LFM2, hidden_size=2048, block_ff_dim=12288, num_attention_heads=32),
            vision_config=dict(SIGLIP_SO400M, model_type="siglip2_vision_model", patch_size=16),
        ),
        1.6, 16, 2048, 384, 1152, None,
    ),
    "LiquidAI/LFM2-VL-450M": Published(
        dict(
            model_type="lfm2-vl",
            text_config=dict(LFM2, hidden_size=1024, block_ff_dim=6656, num_attention_heads=16),
            vision_config=dict(SIGLIP_B, model_type="siglip2_vision_model", vision_use_head=False),
        ),
        0.5, 16, 1024, 192, 768, None,
    ),
    "deepseek-community/deepseek-vl-1.3b-chat": Published(
        dict(
            model_type="deepseek_vl",
            text_config=dict(
                LLAMA,
                hidden_size=2048,
                intermediate_size=5632,
                num_hidden_layers=24,
                num_attention_heads=16,
            ),
            vision_config=SIGLIP_L,
        ),
        2.0, 24, 2048, 384, 1024, (24, 24),
    ),
    "deepseek-community/deepseek-vl-7b-chat": Published(
        dict(
            model_type="deepseek_vl_hybrid", text_config=dict(LLAMA, num_hidden_layers=30), vision_config=SIGLIP_L
        ),
        7.3, 30, 4096, 960, 1024, (24, 24),
    ),
}  # fmt: skip
# The same model, read with pan and scan.
PAN = " (pan and scan)"
PUBLISHED[f"google/gemma-3-4b-it{PAN}"] = PUBLISHED["google/gemma-3-4b-it"]._replace(channels=80)
