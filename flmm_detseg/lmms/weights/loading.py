"""Reading models, tokenizers and image settings in hub layout, with errors a user can act on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from flmm_detseg.compat.transformers5 import is_of_type, keep_ties
from flmm_detseg.errors import CheckpointError, ConfigError
from flmm_detseg.lmms.family import Family
from flmm_detseg.lmms.weights.facts import check_config, check_image_settings, check_image_sizes
from flmm_detseg.utils.hub import check_folder

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Buffers that old checkpoints hold and new models compute.
_HARMLESS_KEYS = ("position_ids", "rotary_emb.inv_freq")


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of a name.

    Args:
        name: For example ``"bfloat16"``.

    Returns:
        The dtype.

    Raises:
        ConfigError: Unknown name.
    """
    if name not in _DTYPES:
        raise ConfigError(f"`dtype` is {name!r}; allowed: {sorted(_DTYPES)}")
    return _DTYPES[name]


def load_model(family_class: type[Family], pretrained: str, dtype: torch.dtype) -> PreTrainedModel:
    """Loads a model from safetensors, strictly.

    Args:
        family_class: Says which class of transformers it is.
        pretrained: Folder or hub name.
        dtype: Of the weights.

    Returns:
        The model in eval mode; all of its weights come from the files.

    Raises:
        ConfigError: No such model, or one of another family.
        CheckpointError: The weights are absent, damaged, or do not fit the config; names the keys.
    """
    pretrained = check_folder(pretrained)
    model_class, config_class = family_class.model_class, family_class.config_class
    try:
        fields, _ = config_class.get_config_dict(pretrained)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{pretrained}: config.json cannot be read: {error}") from error
    if not is_of_type(fields, config_class.model_type):
        raise ConfigError(
            f"{pretrained}: model_type is {fields.get('model_type')!r}, "
            f"this adapter reads {config_class.model_type!r}"
        )
    try:
        config = config_class.from_dict(fields)
        keep_ties(config, fields)
    except (AttributeError, KeyError, StrictDataclassError, TypeError, ValueError) as error:
        raise ConfigError(f"{pretrained}: config.json cannot be used: {error}") from error
    check_config(family_class(config), pretrained)
    try:
        model, info = model_class.from_pretrained(
            pretrained,
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{pretrained}: weights cannot be read: {error}; store the model again (safetensors)"
        ) from error
    except (AttributeError, ImportError, KeyError, StrictDataclassError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{pretrained}: transformers cannot build the model from config.json (or generation_config.json): {error}"
        ) from error
    wrong = {
        kind: sorted(str(key) for key in info[kind] if not str(key).endswith(_HARMLESS_KEYS))
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
    }
    if found := {kind: keys[:5] for kind, keys in wrong.items() if keys}:
        raise CheckpointError(
            f"{pretrained}: weights do not fit config.json: {found}; fetch or make the model again"
        )
    return model


def load_tokenizer(pretrained: str) -> PreTrainedTokenizerBase:
    """Loads a tokenizer.

    Args:
        pretrained: Folder or hub name.

    Returns:
        The tokenizer; no code of its folder has run.

    Raises:
        ConfigError: It is missing or cannot be read.
    """
    pretrained = check_folder(pretrained)
    try:
        # False, not None: transformers would ask whoever sits at the terminal whether to run the folder's code.
        return AutoTokenizer.from_pretrained(pretrained, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise anything here, even bare Exceptions
        raise ConfigError(f"{pretrained}: the tokenizer cannot be read: {remote_code_hint(error)}") from error


def remote_code_hint(error: Exception) -> str:
    """The error of a ``from_pretrained``; where the folder wants to run code of its own, in words of ours."""
    if "trust_remote_code" not in str(error):
        return str(error)
    return (
        "the folder asks to run Python code of its own (auto_map), and this package runs no code of a model folder; "
        "use a folder whose classes transformers has, or remove auto_map if it has them"
    )


def load_normalisation(
    pretrained: str, config: PretrainedConfig
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Reads mean and standard deviation of RGB from the preprocessor config.

    Args:
        pretrained: Folder or hub name.
        config: The model's config.

    Returns:
        Mean and standard deviation, three numbers each, of pixels in [0, 1].

    Raises:
        ConfigError: The file is missing or lacks them, or asks for other arithmetic.
    """
    pretrained = check_folder(pretrained)
    try:
        settings, _ = CLIPImageProcessor.get_image_processor_dict(pretrained)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{pretrained}: preprocessor_config.json with image_mean and image_std is needed: {error}"
        ) from error
    check_image_sizes(settings, _processor_fields(pretrained), config, pretrained)
    return check_image_settings(settings, pretrained)


def _processor_fields(pretrained: str) -> dict[str, Any]:
    """Fields of a folder's ``processor_config.json``, which only other programs need; empty for a hub name."""
    try:
        fields = json.loads((Path(pretrained) / "processor_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}
