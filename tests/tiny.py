"""Tiny models and samples for tests: built from config, random weights, CPU, no files, no network."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import LlavaConfig, LlavaNextConfig, PreTrainedTokenizerFast

from flmm_detseg.lmms import LlavaAdapter, LlavaNextAdapter
from flmm_detseg.lmms.processors import itself
from flmm_detseg.structures import GroundingBatch, ImageInputs, PatchGrid, Phrase, Sample

WORDS = (
    "a the small large red blue green star ring square circle left right above of on near is . , ?".split()
)
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
IMAGE_SIDE, PATCH_SIZE = 56, 14
PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]


@lru_cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Words, and printable ASCII characters for everything else; ``<s>`` leads; knows ``<image>``."""
    chars = [chr(code) for code in range(33, 127)]
    tokens = [*SPECIAL_TOKENS, "USER", "ASSISTANT", *WORDS, *chars, *(f"##{char}" for char in chars)]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    core = Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocab["<s>"])]
    )
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def _fields(num_layers: int, num_heads: int, num_kv_heads: int, hidden_size: int) -> dict:
    tokenizer = tiny_tokenizer()
    vision = dict(
        model_type="clip_vision_model",
        hidden_size=32,
        intermediate_size=48,
        projection_dim=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=IMAGE_SIDE,
        patch_size=PATCH_SIZE,
    )
    text = dict(
        model_type="llama",
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 2,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        max_position_embeddings=1024,
        # Larger than usual, so that random attention is far from uniform.
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return dict(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=False,
    )


def tiny_llava_config(
    num_layers: int = 3, num_heads: int = 4, num_kv_heads: int = 4, hidden_size: int = 32
) -> LlavaConfig:
    """A LLaVA with a 4 x 4 token grid (56-px image, 14-px patches)."""
    return LlavaConfig(**_fields(num_layers, num_heads, num_kv_heads, hidden_size))


def tiny_llava_next_config(
    num_layers: int = 2, num_heads: int = 4, num_kv_heads: int = 2, hidden_size: int = 32
) -> LlavaNextConfig:
    """A LLaVA-NeXT with a 4 x 4 base grid and five canvases, grouped-query attention."""
    return LlavaNextConfig(
        **_fields(num_layers, num_heads, num_kv_heads, hidden_size), image_grid_pinpoints=PINPOINTS
    )


def tiny_llava(
    *,
    rows: dict | None = None,
    frozen: bool = True,
    share_prefix: bool = True,
    max_length: int | None = None,
    prompt_template: str = "vicuna",
    dtype: str = "float32",
    num_layers: int = 3,
    num_heads: int = 4,
    num_kv_heads: int = 4,
    hidden_size: int = 32,
    lora: dict | None = None,
    added_tokens: list[str] | None = None,
    parts: dict | None = None,
    gradient_checkpointing: bool = False,
    seed: int = 0,
) -> LlavaAdapter:
    """A ready LLaVA adapter: prepares samples, encodes, generates."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlavaAdapter.from_config(
            tiny_llava_config(num_layers, num_heads, num_kv_heads, hidden_size),
            tokenizer=tiny_tokenizer(),
            rows=rows,
            frozen=frozen,
            share_prefix=share_prefix,
            max_length=max_length,
            prompt_template=prompt_template,
            dtype=dtype,
            lora=lora,
            added_tokens=added_tokens,
            parts=parts,
            gradient_checkpointing=gradient_checkpointing,
        )


def tiny_llava_next(
    *,
    rows: dict | None = None,
    frozen: bool = True,
    share_prefix: bool = True,
    prompt_template: str = "vicuna",
    dtype: str = "float32",
    lora: dict | None = None,
    gradient_checkpointing: bool = False,
    seed: int = 0,
) -> LlavaNextAdapter:
    """A ready LLaVA-NeXT adapter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlavaNextAdapter.from_config(
            tiny_llava_next_config(),
            tokenizer=tiny_tokenizer(),
            rows=rows,
            frozen=frozen,
            share_prefix=share_prefix,
            prompt_template=prompt_template,
            dtype=dtype,
            lora=lora,
            gradient_checkpointing=gradient_checkpointing,
        )


PHRASES = (
    "the small red star",
    "a blue ring",
    "the green square",
    "a large circle",
    "the red ring on the left",
)


def make_sample(
    index: int = 0,
    *,
    image_size: tuple[int, int] = (48, 72),
    num_phrases: int = 2,
    image_id: str | None = None,
    prompt: str | None = None,
    with_masks: bool = True,
) -> Sample:
    """A sample with K phrases in its text, a random image and a rectangle as mask of each phrase.

    Args:
        index: Varies text, image and masks. Samples with equal ``image_id`` and ``image_size`` have equal
            images.
        image_size: ``(H, W)``.
        num_phrases: K.
        image_id: Key of shared images; also seeds the image.
        prompt: Question; None for the default one.
        with_masks: False for inference samples.
    """
    rng = np.random.default_rng(index)
    image_rng = rng if image_id is None else np.random.default_rng(sum(image_id.encode()))
    height, width = image_size
    image = image_rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    text, phrases = "", []
    for k in range(num_phrases):
        words = PHRASES[(index + k) % len(PHRASES)]
        start = len(text) + (len(" near ") if k else 0)
        text += (" near " if k else "") + words
        phrases.append(Phrase(spans=((start, start + len(words)),), is_thing=True, is_plural=False))
    masks = np.zeros((num_phrases, height, width), dtype=bool)
    for mask in masks:
        y, x = rng.integers(0, max(1, height // 2)), rng.integers(0, max(1, width // 2))
        mask[y : y + height // 3 + 1, x : x + width // 3 + 1] = True
    return Sample(
        record_id=f"tiny/{index}",
        image=image,
        text=text + " .",
        phrases=tuple(phrases),
        masks=masks if with_masks else None,
        prompt=prompt,
        image_id=image_id,
    )


def mixed_samples() -> list[Sample]:
    """Five samples: mixed sizes and K, three of them of one image."""
    return [
        make_sample(0, image_size=(48, 72), num_phrases=2, image_id="shared"),
        make_sample(1, image_size=(90, 30), num_phrases=1),
        make_sample(2, image_size=(48, 72), num_phrases=3, image_id="shared"),
        make_sample(3, image_size=(56, 56), num_phrases=4, image_id="alone"),
        make_sample(4, image_size=(48, 72), num_phrases=1, image_id="shared"),
    ]


def one_image(pixel_values: torch.Tensor, grid: PatchGrid) -> tuple[ImageInputs]:
    """The images of inputs made by hand; of several views, the first one shows the whole image."""
    view = pixel_values if pixel_values.ndim == 3 else pixel_values[0] if len(pixel_values) else None
    return (ImageInputs(pixel_values, grid, None if view is None else partial(itself, view)),)


def make_batch(adapter: LlavaAdapter | LlavaNextAdapter, samples: Sequence[Sample]) -> GroundingBatch:
    """Prepares samples with an adapter, as a model does."""
    return GroundingBatch(samples=list(samples), inputs=[adapter.prepare(sample) for sample in samples])
