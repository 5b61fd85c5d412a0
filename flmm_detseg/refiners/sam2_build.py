"""Builds SAM 2.1 models of the published and of other sizes, and reads their weights in hub layout."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    BaseImageProcessor,
    PretrainedConfig,
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2MaskDecoderConfig,
    Sam2Model,
    Sam2PromptEncoderConfig,
    Sam2VisionConfig,
)

from flmm_detseg.compat.transformers5 import sam2_image_processor
from flmm_detseg.errors import CheckpointError, ConfigError
from flmm_detseg.utils.finite import not_finite
from flmm_detseg.utils.hub import check_folder
from flmm_detseg.utils.names import suggest

# The published files are those of the video model, whose memory an image does not need.
_MODEL_TYPES = ("sam2", "sam2_video")
_PARTS = ("vision_config", "prompt_encoder_config", "mask_decoder_config")
_KINDS = {
    "vision_config": Sam2VisionConfig,
    "backbone_config": Sam2HieraDetConfig,
    "prompt_encoder_config": Sam2PromptEncoderConfig,
    "mask_decoder_config": Sam2MaskDecoderConfig,
}
_FEATURE_LEVELS = 3


def _hiera(
    width: int,
    num_heads: int,
    blocks: Sequence[int],
    global_blocks: Sequence[int],
    windows: Sequence[int] = (8, 4, 14, 7),
    background: int = 7,
) -> dict[str, Any]:
    """Fields of a config from the sizes that differ between the published models."""
    widths = [width << stage for stage in range(4)]
    backbone = dict(
        hidden_size=width,
        embed_dim_per_stage=widths,
        num_attention_heads_per_stage=[num_heads << stage for stage in range(4)],
        blocks_per_stage=list(blocks),
        global_attention_blocks=list(global_blocks),
        window_size_per_stage=list(windows),
        window_positional_embedding_background_size=[background, background],
    )
    return {"vision_config": dict(backbone_config=backbone, backbone_channel_list=widths[::-1])}


SAM2_VARIANTS: dict[str, dict[str, Any]] = {
    "hiera_tiny": _hiera(96, 1, (1, 2, 7, 2), (5, 7, 9)),
    "hiera_small": _hiera(96, 1, (1, 2, 11, 2), (7, 10, 13)),
    "hiera_base_plus": _hiera(112, 2, (2, 3, 16, 3), (12, 16, 20), background=14),
    "hiera_large": _hiera(144, 2, (2, 6, 36, 4), (23, 33, 43), windows=(8, 4, 16, 8)),
}


def build_sam2(variant: str | Mapping[str, Any] | None = None, checkpoint: str | None = None) -> Sam2Model:
    """Builds a SAM 2.1 image model in evaluation mode.

    Args:
        variant: ``"hiera_tiny"``, ``"hiera_small"``, ``"hiera_base_plus"``, ``"hiera_large"``, or fields of
            transformers' ``Sam2Config``. May be None where ``checkpoint`` is given, whose config then decides.
        checkpoint: Name on the hub (``"facebook/sam2.1-hiera-large"``), or a folder in hub layout; None leaves random
            weights (also on the meta device).

    Returns:
        The model, float32, with the weights of ``checkpoint`` or random ones.

    Raises:
        ConfigError: Unknown variant, none given where one is needed, no such model, one of another family or of other
            sizes than the variant, or sizes that contradict each other.
        CheckpointError: The weights cannot be read or do not fit; names the keys.
    """
    if checkpoint is None:
        return Sam2Model(_config_of(variant)).eval()
    source = check_folder(checkpoint)
    config = _read_config(source)
    if variant is not None:
        if wrong := _differences(_config_of(variant).to_dict(), config.to_dict(), _fields(variant)):
            raise ConfigError(
                f"SAM 2 variant {variant!r} differs from config.json of {source} ({'; '.join(wrong)}); drop `variant`, "
                "or name the checkpoint of that size"
            )
    try:
        model, info = Sam2Model.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{source}: weights cannot be read: {_one_line(error)}; fetch the model again (safetensors)"
        ) from error
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    wrong_keys = {kind: sorted(map(str, info[kind]))[:5] for kind in kinds if info[kind]}
    if broken := not_finite(model.state_dict()):
        wrong_keys["not_finite"] = broken[:5]
    if wrong_keys:
        raise CheckpointError(
            f"{source}: weights do not fit config.json: {wrong_keys}; fetch the model again"
        )
    return model.eval()


def load_image_processor(checkpoint: str) -> BaseImageProcessor:
    """Reads how a model wants its pixels.

    Args:
        checkpoint: As in :func:`build_sam2`.

    Returns:
        The image processor.

    Raises:
        ConfigError: There is no ``preprocessor_config.json``, or it cannot be read.
    """
    source = check_folder(checkpoint)
    try:
        return sam2_image_processor().from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{source}: preprocessor_config.json cannot be read: {_one_line(error)}; fetch the model again"
        ) from error


def _fields(variant: str | Mapping[str, Any] | None) -> dict[str, Any]:
    if isinstance(variant, Mapping):
        return dict(variant)
    if variant not in SAM2_VARIANTS:
        raise ConfigError(
            f"unknown SAM 2 variant {variant!r}; choose one of {', '.join(SAM2_VARIANTS)}, give the fields of a "
            "Sam2Config, or name a `checkpoint`"
        )
    return SAM2_VARIANTS[variant]


def _config_of(variant: str | Mapping[str, Any] | None) -> Sam2Config:
    fields = copy.deepcopy(_fields(variant))  # transformers writes into them
    _check_names(fields, Sam2Config, "")
    backbone = fields.get("vision_config", {}).get("backbone_config")
    if isinstance(backbone, dict):
        backbone.setdefault("model_type", Sam2HieraDetConfig.model_type)  # transformers 5 asks for it
    return _checked(Sam2Config(**fields), "SAM 2 variant")


def _check_names(fields: Mapping[str, Any], kind: type[PretrainedConfig], path: str) -> None:
    """Refuses misspelt fields, which transformers would keep and not use."""
    known = [name for name in inspect.signature(kind).parameters if name != "kwargs"]
    for name, value in fields.items():
        if name not in known:
            raise ConfigError(
                f"SAM 2 variant: `{path}{name}` is no field of a {kind.__name__}{suggest(name, known)}"
            )
        if name in _KINDS:
            if not isinstance(value, Mapping):
                raise ConfigError(f"SAM 2 variant: `{path}{name}` is {value!r}; give its fields, dict(...)")
            _check_names(value, _KINDS[name], f"{path}{name}.")


def _read_config(source: str) -> Sam2Config:
    try:
        fields, _ = Sam2Config.get_config_dict(source)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{source}: config.json cannot be read: {_one_line(error)} (a hub name needs the network or a filled cache)"
        ) from error
    if fields.get("model_type") not in _MODEL_TYPES:
        raise ConfigError(
            f"{source}: model_type is {fields.get('model_type')!r}; one of {', '.join(_MODEL_TYPES)} is needed here"
        )
    try:
        config = Sam2Config(**{name: fields[name] for name in _PARTS})
    except (AttributeError, KeyError, StrictDataclassError, TypeError, ValueError) as error:
        raise ConfigError(f"{source}: config.json cannot be used: {error!r}") from error
    return _checked(config, source)


def _checked(config: Sam2Config, source: str) -> Sam2Config:
    """Sizes that must agree, because maps of one part are added to those of another."""
    vision, prompts, decoder = (getattr(config, name) for name in _PARTS)
    backbone = vision.backbone_config
    size = backbone.image_size
    facts = {
        "vision_config.backbone_config.image_size": (
            [size, size] if isinstance(size, int) else list(size),
            [prompts.image_size] * 2,
        ),
        "vision_config.num_feature_levels": (vision.num_feature_levels, _FEATURE_LEVELS),
        "vision_config.fpn_hidden_size": (vision.fpn_hidden_size, prompts.hidden_size),
        "mask_decoder_config.hidden_size": (decoder.hidden_size, prompts.hidden_size),
        "prompt_encoder_config.patch_size": (
            prompts.patch_size,
            backbone.patch_stride[0] * backbone.query_stride[0] ** 2,
        ),
    }
    for name, (found, wanted) in facts.items():
        if found != wanted:
            raise ConfigError(f"{source}: `{name}` is {found}, the other parts need {wanted}")
    return config


def _differences(wanted: Any, found: Any, stated: Any, path: str = "") -> list[str]:
    """Where two configs differ in the fields that a variant states."""
    if isinstance(stated, Mapping):
        return [
            line
            for name, value in stated.items()
            for line in _differences(wanted[name], found[name], value, f"{path}.{name}" if path else name)
        ]
    same = list(wanted) == list(found) if isinstance(wanted, (list, tuple)) else wanted == found
    return [] if same else [f"{path} {found} instead of {wanted}"]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
