"""What transformers 4 and 5 call otherwise; every other file is written for both.

Each function looks at what is there, none at a version. Files hold the names of transformers 4, whichever is installed.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    BaseImageProcessor,
    Cache,
    CLIPVisionModel,
    DynamicCache,
    PretrainedConfig,
    PreTrainedModel,
    Siglip2VisionModel,
    SiglipVisionModel,
)
from transformers.masking_utils import create_causal_mask

# Towers that are a module within a module in transformers 4, and that module itself in 5.
_TOWERS = (CLIPVisionModel, SiglipVisionModel, Siglip2VisionModel)
_INNER = "vision_model"
_TIES = "tie_word_embeddings"


def is_of_type(fields: Mapping[str, Any], model_type: str) -> bool:
    """Whether a config's file is of a type of models, which releases spell otherwise (``lfm2-vl``, ``lfm2_vl``).

    Args:
        fields: Of the file.
        model_type: Of transformers' class.

    Returns:
        Whether it is.
    """
    stated = fields.get("model_type")
    return isinstance(stated, str) and stated.replace("-", "_") == model_type.replace("-", "_")


def keep_ties(config: PretrainedConfig, fields: Mapping[str, Any]) -> None:
    """Has a model share its table of tokens between both ends where its file says so.

    Transformers 4 goes by the text's part of the config, 5 by the whole one (some families' in 5 by both).

    Args:
        config: Made of the fields; changed in place where transformers 5 is installed.
        fields: Of the file. 5 always states it for the whole config; what 4 states there it does not go by.
    """
    if _TIES in getattr(type(config), "__dataclass_fields__", ()):
        text = getattr(config.get_text_config(decoder=True), _TIES, False)
        setattr(config, _TIES, bool(fields.get(_TIES, False) or text))


def tower_body(tower: nn.Module) -> Any:  # modules by names that depend on the tower
    """The part of a CLIP or SigLIP tower that has its embeddings, blocks and norms."""
    return getattr(tower, _INNER, tower)


def run_tower_block(block: nn.Module, states: Tensor, mask: Tensor | None = None) -> Tensor:
    """Runs a block of a CLIP tower.

    Args:
        block: The block.
        states: ``[B, n, D]``.
        mask: Additive, ``[B, 1, n, n]``; None: none.

    Returns:
        ``[B, n, D]``.
    """
    further = _taken(type(block).forward, {"causal_attention_mask": None})
    output = block(states, attention_mask=mask, **further)
    return output[0] if isinstance(output, tuple) else output


def merged_tokens(output: Any) -> tuple[Tensor, list[Tensor]]:
    """What a tower of Qwen-VL gives.

    Args:
        output: Of the tower.

    Returns:
        Its tokens ``[n, d]`` after the merger, and features for the decoder's first layers, ``[n, d]`` each.
    """
    if isinstance(output, Tensor):
        return output, []
    if isinstance(output, tuple):
        return output[0], output[1]
    return output.pooler_output, list(getattr(output, "deepstack_features", ()))


def own_features(output: Any) -> Tensor:
    """Features that a method of a model gives, which are the last state of an output in transformers 5."""
    return output if isinstance(output, Tensor) else output.last_hidden_state


def image_token_types(model_class: type[nn.Module], image_mask: Tensor) -> dict[str, Tensor]:
    """What a model's own forward wants to know of its tokens to find rotary positions of several axes.

    Args:
        model_class: Of transformers.
        image_mask: bool ``[T]``.

    Returns:
        The argument, int64 ``[1, T]``, for models that have it.
    """
    return _taken(model_class.forward, {"mm_token_type_ids": image_mask[None].long()})


def cache_argument(module: nn.Module, past: Cache | None) -> dict[str, Cache | None]:
    """Keys and values so far under the name that a decoder (or a layer of one) has for them."""
    name = "cache" if "cache" in _names(type(module).forward) else "past_key_values"
    return {name: past}


def hybrid_cache(config: PretrainedConfig, dtype: torch.dtype, device: torch.device) -> Cache:
    """An empty cache of one sequence for LFM2, most of whose layers are convolutions.

    Args:
        config: Of the decoder.
        dtype: Of the model.
        device: Of the model.

    Returns:
        The cache.
    """
    from transformers.models.lfm2 import modeling_lfm2

    own = getattr(modeling_lfm2, "Lfm2HybridConvCache", None)
    return DynamicCache(config=config) if own is None else own(config, 1, dtype, device)


def causal_mask(
    config: PretrainedConfig, embeds: Tensor, mask: Tensor, past: Cache | None, position_ids: Tensor
) -> Tensor | None:
    """Transformers' causal mask of a decoder.

    Args:
        config: Of the decoder.
        embeds: ``[B, T, d]``.
        mask: bool: ``[B, P + T]``, tokens that may be seen, or a whole mask.
        past: Keys and values of P earlier tokens.
        position_ids: int64 ``[B, T]``.

    Returns:
        What layers take as their mask; None: causality is the attention function's.
    """
    start = 0 if past is None else past.get_seq_length()
    places = torch.arange(start, start + embeds.shape[1], device=embeds.device)
    named = {"cache_position": places, "cache": past, "past_key_values": past}
    named |= {"input_embeds": embeds, "inputs_embeds": embeds}
    return create_causal_mask(
        config=config, attention_mask=mask, position_ids=position_ids, **_taken(create_causal_mask, named)
    )


def only_records(hook: Callable[..., Any]) -> bool:
    """Whether a hook is one by which transformers 5 collects hidden states: it comes with the first call that asks for
    them, stays, and changes nothing.
    """
    return getattr(hook, "__module__", None) == "transformers.utils.output_capturing"


def rope_theta(config: PretrainedConfig) -> float:
    """Base of a decoder's rotary frequencies."""
    settings = getattr(config, "rope_parameters", None)
    return config.rope_theta if settings is None else settings["rope_theta"]


def sam2_image_processor() -> type[BaseImageProcessor]:
    """SAM 2's image processor; the suffix of those that work on tensors is gone in transformers 5."""
    return getattr(transformers, "Sam2ImageProcessor", None) or transformers.Sam2ImageProcessorFast


def stored_names(model: nn.Module, names: Sequence[str]) -> dict[str, str]:
    """Under which names files hold parameters of a model.

    Args:
        model: Has an LMM of transformers in it.
        names: Of its parameters.

    Returns:
        By name; the names themselves where transformers 4 is installed.
    """
    paths = [path for path, nested in _tower_paths(model).items() if not nested]
    found = {}
    for name in names:
        path = next((path for path in paths if name.startswith(path)), None)
        found[name] = name if path is None else f"{path}{_INNER}.{name.removeprefix(path)}"
    return found


def names_here(model: nn.Module, name: str) -> list[str]:
    """What a part of a model may be called here that a file of another release of transformers names.

    Args:
        model: Of transformers.
        name: Of a parameter or module, as the file has it.

    Returns:
        The name itself first; not all of them need exist.
    """
    towers = _tower_paths(model)
    found = []
    for renamed in (name, *_published_names(model, name)):
        found.append(renamed)
        for path, nested in towers.items():
            if renamed.startswith(path):
                rest = renamed.removeprefix(path).removeprefix(f"{_INNER}.")
                found.append(f"{path}{_INNER}.{rest}" if nested else f"{path}{rest}")
    return list(dict.fromkeys(found))


def _tower_paths(model: nn.Module) -> dict[str, bool]:
    """Where towers are, with a dot, and whether they are a module within a module."""
    return {
        f"{path}.": hasattr(module, _INNER)
        for path, module in model.named_modules()
        if isinstance(module, _TOWERS)
    }


def _published_names(model: nn.Module, name: str) -> Iterator[str]:
    """By transformers' own tables for weights that older releases stored."""
    for old, new in (getattr(model, "_checkpoint_conversion_mapping", None) or {}).items():
        yield re.sub(old, new, name)
    if isinstance(model, PreTrainedModel) and importlib.util.find_spec("transformers.conversion_mapping"):
        tables = importlib.import_module("transformers.conversion_mapping")
        for step in tables.get_model_conversion_mapping(model):
            name, _ = step.rename_source_key(name)
        yield name


@cache
def _names(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def _taken(function: Callable[..., Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that a function has."""
    return {name: value for name, value in named.items() if name in _names(function)}
