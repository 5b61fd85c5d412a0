"""The tiny LLaVA: tokenizer, model and processor of a real ``LlavaForConditionalGeneration``, a few MB small."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from flmm_detseg.compat.transformers5 import run_tower_block, tower_body
from flmm_detseg.errors import CheckpointError
from flmm_detseg.pretrain.settings import TinyLlavaSizes

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
PRINTABLE_ASCII = tuple(chr(code) for code in range(33, 127))
CAPTION_PROMPT = "Please give me a description of the image."
BOXED_CAPTION_PROMPT = "Please give me a description of the image with boxes."
BOX_PROMPT = "what is the box of {expression} ?"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + (eos_token if message['role'] == 'assistant' else ' ') }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def build_tokenizer(words: Sequence[str], added: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Builds a word-level tokenizer with a character fallback.

    Every word is one token; other text falls apart into printable ASCII characters (``c`` and ``##c``), so
    only non-ASCII characters become ``<unk>``. Character offsets refer to the unchanged input text.

    Args:
        words: Closed vocabulary of the world; duplicates are welcome. Their order decides the ids.
        added: Further words; their ids come after all others, which stay as they are.

    Returns:
        Fast tokenizer that prepends ``<s>`` and knows ``<image>``.
    """
    prompts = (CAPTION_PROMPT, BOXED_CAPTION_PROMPT, BOX_PROMPT.format(expression=""))
    splitter = pre_tokenizers.BertPreTokenizer()
    extra = [
        piece for prompt in (*prompts, "USER: ASSISTANT:") for piece, _ in splitter.pre_tokenize_str(prompt)
    ]
    pieces = [piece for word in words for piece, _ in splitter.pre_tokenize_str(word)]
    tokens = [*SPECIAL_TOKENS, *pieces, *extra, *PRINTABLE_ASCII, *(f"##{char}" for char in PRINTABLE_ASCII)]
    tokens += added
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    model = models.WordPiece(vocab, unk_token="<unk>", max_input_chars_per_word=10_000)
    core = Tokenizer(model)
    core.pre_tokenizer = splitter
    core.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocab["<s>"])]
    )
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=2048,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_config(tokenizer: PreTrainedTokenizerFast, sizes: TinyLlavaSizes) -> LlavaConfig:
    """Builds the LLaVA config: same fields as the hub's llava-1.5 checkpoints, other sizes."""
    vision = CLIPVisionConfig(
        hidden_size=sizes.vision_hidden,
        intermediate_size=4 * sizes.vision_hidden,
        projection_dim=sizes.vision_hidden,
        num_hidden_layers=sizes.vision_layers + 1,
        num_attention_heads=sizes.vision_heads,
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.text_hidden,
        intermediate_size=3 * sizes.text_hidden,
        num_hidden_layers=sizes.text_layers,
        num_attention_heads=sizes.text_heads,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(sizes.image_size // sizes.patch_size) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
    )


def sincos_positions(rows: int, cols: int, dim: int) -> Tensor:
    """2-D sine-cosine position table, ``[rows * cols, dim]`` float32, half of the channels for y."""
    frequencies = torch.exp(-math.log(100.0) * torch.arange(dim // 4) / (dim // 4))
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
    parts = [f(pos.reshape(-1, 1) * frequencies) for pos in (y, x) for f in (torch.sin, torch.cos)]
    return torch.cat(parts, dim=1)


def build_model(
    tokenizer: PreTrainedTokenizerFast, sizes: TinyLlavaSizes, seed: int
) -> LlavaForConditionalGeneration:
    """Builds the randomly initialised model (float32, CPU), tower positions from 2-D sine-cosine tables."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(build_config(tokenizer, sizes))
        side = sizes.image_size // sizes.patch_size
        embeddings = tower_body(model.model.vision_tower).embeddings
        with torch.no_grad():
            # CLIP's own scale (std 0.02 / sqrt(2)) would bury the table under the patch embeddings.
            embeddings.position_embedding.weight[1:] = 0.3 * sincos_positions(side, side, sizes.vision_hidden)
            nn.init.normal_(embeddings.patch_embedding.weight, std=0.05)
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def build_processor(tokenizer: PreTrainedTokenizerFast, sizes: TinyLlavaSizes) -> LlavaProcessor:
    """Builds the processor: CLIP preprocessing at our size, ``<image>`` expanded to one token per patch."""
    side = sizes.image_size
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, do_convert_rgb=True
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=sizes.patch_size,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    )


def sizes_of(config: LlavaConfig) -> TinyLlavaSizes:
    """Reads the sizes back from a config made by :func:`build_config`."""
    vision, text = config.vision_config, config.text_config
    return TinyLlavaSizes(
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        vision_hidden=vision.hidden_size,
        vision_layers=vision.num_hidden_layers - 1,
        vision_heads=vision.num_attention_heads,
        text_hidden=text.hidden_size,
        text_layers=text.num_hidden_layers,
        text_heads=text.num_attention_heads,
    )


def save_hub_layout(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, out_dir: str | Path
) -> Path:
    """Writes model (float16 safetensors), tokenizer and processor as the hub stores a LLaVA.

    Args:
        model: Any tiny LLaVA; left unchanged.
        tokenizer: Its tokenizer.
        out_dir: Folder, made if absent; files of the same names are replaced one after the other.

    Returns:
        ``out_dir``.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    half = LlavaForConditionalGeneration(model.config)
    half.load_state_dict(model.state_dict())
    half.half().eval()
    half.generation_config = model.generation_config
    staging = out_dir / ".staging"
    half.save_pretrained(staging, safe_serialization=True)
    build_processor(tokenizer, sizes_of(model.config)).save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    # A reader that opens the folder meanwhile sees whole files only.
    for path in sorted(staging.iterdir()):
        path.chmod(0o644)
        path.replace(out_dir / path.name)
    shutil.rmtree(staging)
    return out_dir


def load_tiny_llava(
    model_dir: str | Path,
) -> tuple[LlavaForConditionalGeneration, PreTrainedTokenizerFast]:
    """Loads a hub-layout folder in float32, ready to evaluate.

    Args:
        model_dir: As written by the training.

    Returns:
        The model in eval mode, and its tokenizer.

    Raises:
        CheckpointError: If the folder has no ``config.json`` or the weights do not fit it.
    """
    model_dir = Path(model_dir)
    if not (model_dir / "config.json").is_file():
        raise CheckpointError(f"{model_dir}: no config.json; make it with tools/pretrain_tiny_llava.py")
    model, info = LlavaForConditionalGeneration.from_pretrained(
        model_dir,
        dtype=torch.float32,
        local_files_only=True,
        output_loading_info=True,
        trust_remote_code=False,
    )
    checks = ("missing_keys", "unexpected_keys", "mismatched_keys")
    wrong = {key: sorted(info[key])[:5] for key in checks if info[key]}
    if wrong:
        raise CheckpointError(f"{model_dir}: weights do not fit the config: {wrong}; write the folder again")
    return model.eval(), AutoTokenizer.from_pretrained(
        model_dir, local_files_only=True, trust_remote_code=False
    )


def load_grown(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, start: str | Path
) -> None:
    """Puts stored weights into a model whose tokenizer may know more words; their rows begin near the mean row.

    Args:
        model: Newly built for ``tokenizer``; changed in place.
        tokenizer: Knows all tokens of the stored one, by the same ids.
        start: Hub-layout folder.

    Raises:
        CheckpointError: The stored tokens have other ids, or the sizes differ.
    """
    stored, known = load_tiny_llava(start)
    words = tokenizer.get_vocab()
    other = sorted(token for token, number in known.get_vocab().items() if words.get(token) != number)
    if other:
        raise CheckpointError(
            f"{start}: its tokens {other[:3]} are not those of the new model, or have other ids"
        )
    if sizes_of(stored.config) != sizes_of(model.config):
        raise CheckpointError(f"{start}: other sizes ({sizes_of(stored.config)}) than the new model's")
    weights = stored.state_dict()
    for name, initial in model.state_dict().items():
        rows = weights[name]
        if len(initial) > len(rows):
            added = rows.mean(dim=0, keepdim=True) + initial[len(rows) :]
            weights[name] = torch.cat([rows, added])
    model.load_state_dict(weights)


def make_control_lmm(src_dir: str | Path, out_dir: str | Path, seed: int) -> Path:
    """Writes the control LMM: the trained tower and projector with a newly initialised language model.

    Args:
        src_dir: Trained tiny LLaVA in hub layout.
        out_dir: Where the control goes, hub layout as well.
        seed: Seed of the new language model (embeddings and ``lm_head`` included).

    Returns:
        ``out_dir``.

    Raises:
        CheckpointError: If ``src_dir`` is not a readable model.
    """
    model, tokenizer = load_tiny_llava(src_dir)
    untrained = build_model(tokenizer, sizes_of(model.config), seed)
    model.model.language_model.load_state_dict(untrained.model.language_model.state_dict())
    model.lm_head.load_state_dict(untrained.lm_head.state_dict())
    return save_hub_layout(model, tokenizer, out_dir)


def image_features(model: LlavaForConditionalGeneration, pixel_values: Tensor) -> Tensor:
    """Projected image tokens without running the tower's last, unread layer.

    Args:
        model: Tiny LLaVA with ``vision_feature_layer=-2``.
        pixel_values: ``[B, 3, H, W]`` float32, CLIP-normalised.

    Returns:
        ``[B, rows * cols, text_hidden]``, equal to ``model.get_image_features`` (which runs every layer).
    """
    tower = tower_body(model.model.vision_tower)
    hidden = tower.pre_layrnorm(tower.embeddings(pixel_values))
    for layer in tower.encoder.layers[:-1]:
        hidden = run_tower_block(layer, hidden)
    return model.model.multi_modal_projector(hidden[:, 1:])
