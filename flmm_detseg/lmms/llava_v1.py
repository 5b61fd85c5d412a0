"""LLaVA-v1 in its authors' layout (one LLaMA with a projector, a CLIP tower beside it) as a LLaVA of transformers.

What the layouts differ in: names; a projector that may be one linear, which becomes two of which the second changes
nothing; images, of which CLIP's processor takes the middle; and the image's place, which is no token there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from tokenizers import AddedToken, Tokenizer
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from flmm_detseg.compat.transformers5 import stored_names
from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.families.llava import SQUARE, Llava
from flmm_detseg.lmms.weights.loading import load_normalisation, load_tokenizer
from flmm_detseg.utils.whole_files import dump_json

MARKS = ("<im_start>", "<im_end>")
# A token of LLaVA-v1 that its later code no longer writes: it stands for the image here, and its rows exist already.
_PATCH, _IMAGE = "<im_patch>", "<image>"
_TEXT_FIELDS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_MORE_TEXT_FIELDS = (
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "hidden_act",
    "rope_theta",
    "rope_scaling",
    "initializer_range",
    "attention_bias",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
# Of a CLIP's config, whose old files have many others.
_VISION_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "projection_dim",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
)
_PROJECTORS = {"linear": "linear", "mlp2x_gelu": "gelu"}
_EMBED, _UNEMBED = "model.language_model.embed_tokens.weight", "lm_head.weight"
_PROJECTOR = "model.multi_modal_projector"
TOWER = "model.vision_tower"
# Theirs to ours, by the beginning of a name; ours as transformers 4 calls its parameters.
_NAMES = {
    "model.layers.": "model.language_model.layers.",
    "model.embed_tokens.": "model.language_model.embed_tokens.",
    "model.norm.": "model.language_model.norm.",
    "lm_head.": "lm_head.",
    "model.vision_tower.vision_tower.": f"{TOWER}.",
}
_LINEAR = {"model.mm_projector.": f"{_PROJECTOR}.linear_1."}
_TWO = {
    "model.mm_projector.0.": f"{_PROJECTOR}.linear_1.",
    "model.mm_projector.2.": f"{_PROJECTOR}.linear_2.",
}
# Ours to what files have, which every release of transformers reads.
_FILE_NAMES = {
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
    f"{TOWER}.": "vision_tower.",
    f"{_PROJECTOR}.": "multi_modal_projector.",
}


@dataclass(frozen=True)
class LlavaV1:
    """A model of LLaVA-v1 as transformers has it, without its weights.

    Attributes:
        config: Of transformers' LLaVA; its tables have a row for the image.
        tokenizer: Fast, with the image's token.
        marked: Whether an image stands between ``<im_start>`` and ``<im_end>``.
        projector: ``"linear"`` or ``"mlp2x_gelu"``.
        rows: Of the tables as they are stored.
        tower: Folder of the tower: its sizes and image settings, and weights where the model has none.
    """

    config: LlavaConfig
    tokenizer: PreTrainedTokenizerBase
    marked: bool
    projector: str
    rows: int
    tower: Path

    @property
    def image_token(self) -> str:
        """What stands for an image in a text."""
        return str(self.tokenizer.convert_ids_to_tokens(self.config.image_token_index))

    def target(self, name: str) -> str | None:
        """What a stored tensor is called in transformers' LLaVA; None: it belongs to none of its parts."""
        names = {**(_LINEAR if self.projector == "linear" else _TWO), **_NAMES}
        start = next((start for start in names if name.startswith(start)), None)
        return None if start is None else names[start] + name.removeprefix(start)

    def source(self, target: str, *, inside: bool) -> str:
        """What :meth:`target` was made of.

        Args:
            target: Our name.
            inside: Whether the model holds its tower; else the name is that of the tower's folder.

        Returns:
            The name that a stored tensor should have had.
        """
        if target.startswith(f"{TOWER}.") and not inside:
            return f"{self.tower}: {target.removeprefix(f'{TOWER}.')}"
        names = {**(_LINEAR if self.projector == "linear" else _TWO), **_NAMES}
        start, ours = next((start, ours) for start, ours in names.items() if target.startswith(ours))
        return start + target.removeprefix(ours)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor that has to be stored, by our names: the tables as they are, one linear if it is."""
        with torch.device("meta"):
            model = LlavaForConditionalGeneration(self.config)
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        named = stored_names(model, list(shapes))
        found = {named[name]: shape for name, shape in shapes.items()}
        for table in (_EMBED, _UNEMBED):
            found[table] = (self.rows, *found[table][1:])
        if self.projector == "linear":
            found = {
                name: shape for name, shape in found.items() if not name.startswith(f"{_PROJECTOR}.linear_2.")
            }
        return found

    def values(self, target: str, tensor: Tensor) -> dict[str, Tensor]:
        """What becomes of a stored tensor, by our names.

        Args:
            target: From :meth:`target`.
            tensor: The tensor.

        Returns:
            The tensor; a table with a row for the image where it had none, and beside one linear that of a second one
            which changes nothing. The image's row of the output table is that of the unknown token, so that it is
            never more probable than a token the model knows.
        """
        if target in (_EMBED, _UNEMBED) and (count := self.config.text_config.vocab_size - self.rows):
            row = (
                torch.zeros_like(tensor[:1])
                if target == _EMBED
                else tensor[self.tokenizer.unk_token_id][None]
            )
            return {target: torch.cat([tensor, row.expand(count, -1)])}
        found = {target: tensor}
        if self.projector == "linear" and target.startswith(f"{_PROJECTOR}.linear_1."):
            second = target.replace("linear_1", "linear_2")
            if target.endswith(".weight"):
                found[second] = torch.eye(tensor.shape[0], dtype=tensor.dtype)
            else:
                found[second] = torch.zeros_like(tensor)
        return found

    def write_settings(self, folder: Path) -> None:
        """Writes config, tokenizer and processor into a folder that the weights will be in.

        Args:
            folder: Exists.

        Raises:
            ConfigError: The processor would not fit the model.
        """
        side = self.config.vision_config.image_size
        mean, std = load_normalisation(str(self.tower), self.config)
        images = CLIPImageProcessor(
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            image_mean=list(mean),
            image_std=list(std),
        )
        processor = LlavaProcessor(images, self.tokenizer, image_token=self.image_token)
        Llava(self.config).fit_processor(processor, str(folder))
        processor.save_pretrained(folder)
        self.config.save_pretrained(folder)
        text = self.config.text_config
        GenerationConfig(
            bos_token_id=text.bos_token_id, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id
        ).save_pretrained(folder)


def file_name(target: str) -> str:
    """What files call a tensor, by our name."""
    start = next(start for start in _FILE_NAMES if target.startswith(start))
    return _FILE_NAMES[start] + target.removeprefix(start)


def read_fields(folder: Path) -> dict[str, Any]:
    """The fields of a folder's ``config.json``.

    Args:
        folder: Of a model.

    Returns:
        By name.

    Raises:
        ConfigError: There is none, or it is damaged.
    """
    try:
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: config.json cannot be read: {error}") from error
    if not isinstance(fields, dict):
        raise ConfigError(f"{folder}: config.json holds no fields")
    return fields


def read_llava_v1(folder: Path, tower: Path, rows: int | None) -> LlavaV1:
    """Reads config and tokenizer of a LLaVA-v1.

    Args:
        folder: Of the model, with ``config.json`` and a tokenizer.
        tower: Of its CLIP tower, with ``config.json`` and ``preprocessor_config.json``.
        rows: Of the stored table of tokens; None: what the config says.

    Returns:
        The model as transformers would have it.

    Raises:
        ConfigError: Something is missing, or of a kind that is not mapped; says what.
    """
    fields = read_fields(folder)
    _refuse_other_kinds(fields, folder)
    rows = fields.get("vocab_size") if rows is None else rows
    if missing := [name for name in _TEXT_FIELDS if not isinstance(fields.get(name), int)]:
        raise ConfigError(f"{folder}: config.json does not say {', '.join(missing)}")
    if not isinstance(rows, int):
        raise ConfigError(f"{folder}: config.json does not say vocab_size")
    marked = bool(fields.get("mm_use_im_start_end", False))
    tokenizer = _tokenizer(folder, MARKS if marked else ())
    if len(tokenizer) > rows + (_PATCH not in tokenizer.get_vocab()):
        raise ConfigError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, the table of tokens {rows} rows; use the tokenizer "
            "stored with these weights"
        )
    image = tokenizer.convert_tokens_to_ids(_PATCH if _PATCH in tokenizer.get_vocab() else _IMAGE)
    vision = read_fields(tower)
    if vision.get("model_type") == "clip":
        vision = vision.get("vision_config") or {}
    names = [name for name in (*_TEXT_FIELDS, *_MORE_TEXT_FIELDS) if fields.get(name) is not None]
    try:
        text = LlamaConfig(
            **{name: fields[name] for name in names},
            vocab_size=max(rows, int(image) + 1),
            tie_word_embeddings=False,
        )
        config = LlavaConfig(
            vision_config=CLIPVisionConfig(
                **{name: vision[name] for name in _VISION_FIELDS if name in vision}
            ),
            text_config=text,
            image_token_index=int(image),
            projector_hidden_act=_PROJECTORS[_projector(fields)],
            vision_feature_layer=fields.get("mm_vision_select_layer", -2),
            vision_feature_select_strategy="default",
            tie_word_embeddings=False,
            image_aspect_ratio=SQUARE,
        )
    except (AttributeError, KeyError, StrictDataclassError, TypeError, ValueError) as error:
        raise ConfigError(f"{folder}: config.json cannot be used: {error}") from error
    config.image_seq_length = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    width = fields.get("mm_hidden_size", config.vision_config.hidden_size)
    if width != config.vision_config.hidden_size:
        raise ConfigError(
            f"{folder} has a tower {width} wide (mm_hidden_size), {tower} is {config.vision_config.hidden_size} wide; "
            "name the tower of the model (--vision-tower)"
        )
    Llava(config).check_config(str(folder))
    return LlavaV1(config, tokenizer, marked, _projector(fields), rows, tower)


def _projector(fields: Mapping[str, Any]) -> str:
    return str(fields.get("mm_projector_type") or "linear")


def _refuse_other_kinds(fields: Mapping[str, Any], folder: Path) -> None:
    """Raises ConfigError for what is not mapped."""
    kinds = fields.get("model_type"), fields.get("architectures")
    reasons = {
        f"its model_type is {kinds[0]!r}, not LLaVA-v1's 'llava'": kinds[0] != "llava",
        "it is in transformers' layout already (text_config)": "text_config" in fields,
        f"its projector is {_projector(fields)!r}, not one of {', '.join(_PROJECTORS)}": _projector(fields)
        not in _PROJECTORS,
        "it hands the class token to the language model (mm_vision_select_feature)": fields.get(
            "mm_vision_select_feature", "patch"
        )
        != "patch",
        "it has a resampler (mm_resampler_type)": fields.get("mm_resampler_type") is not None,
        "its two tables are one (tie_word_embeddings)": bool(fields.get("tie_word_embeddings", False)),
        "its weights are quantised (quantization_config)": fields.get("quantization_config") is not None,
        "it reads several layers of the tower, or none (mm_vision_select_layer)": not isinstance(
            fields.get("mm_vision_select_layer", -2), int
        ),
    }
    if found := [reason for reason, holds in reasons.items() if holds]:
        raise ConfigError(f"{folder} is not mapped: {'; '.join(found)}")


def _tokenizer(folder: Path, marks: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """The folder's tokenizer as a fast one that needs no other file, with a token for the image.

    Added tokens take the white space around them, as transformers 4.31 had it, which these models were trained with:
    ``<im_end>`` and a line break are one token there.
    """
    slow = load_tokenizer(str(folder))
    if not slow.is_fast:
        raise ConfigError(
            f"{folder}: the tokenizer cannot be made a fast one (tokenizer.model or tokenizer.json)"
        )
    if slow.unk_token_id is None or slow.eos_token_id is None:
        raise ConfigError(
            f"{folder}: the tokenizer has no token for what is unknown, or none for an answer's end"
        )
    if absent := [mark for mark in marks if mark not in slow.get_vocab()]:
        raise ConfigError(
            f"{folder}: config.json says mm_use_im_start_end, and the tokenizer has no {', '.join(absent)}; "
            "added_tokens.json may be missing"
        )
    content = json.loads(slow.backend_tokenizer.to_str())
    known = {slow.bos_token, slow.eos_token, slow.unk_token}
    for token in content["added_tokens"]:
        if token["content"] in known:
            continue
        spaces = token["content"] != _PATCH
        special = token["content"] in (_PATCH, *MARKS)
        token.update(normalized=False, lstrip=spaces, rstrip=spaces, special=special)
    core = Tokenizer.from_str(dump_json(content))
    if _PATCH not in slow.get_vocab():
        core.add_special_tokens([AddedToken(_IMAGE, special=True, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=slow.bos_token,
        eos_token=slow.eos_token,
        unk_token=slow.unk_token,
        pad_token=slow.unk_token,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
