"""Writing a model in hub layout, as transformers and :mod:`flmm_detseg.lmms.weights.loading` read it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoProcessor, PretrainedConfig, PreTrainedModel

from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.weights.loading import check_folder, remote_code_hint


def check_free(out: str | Path) -> Path:
    """Makes sure that nothing would be overwritten; returns the path.

    Raises:
        ConfigError: There is something at ``out``.
    """
    out = Path(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ConfigError(f"{out} exists already; name a new folder, or remove it first")
    return out


def save_hub_model(model: PreTrainedModel, pretrained: str, out: str | Path) -> Path:
    """Writes config, weights (safetensors) and the processor of the model it came from; all or nothing.

    What transformers' processor needs and this package's does not (patch size, image side, tokens of the tower) is
    written from the model's config, whatever the processor's files say or leave out.

    Args:
        model: A plain model of transformers.
        pretrained: Folder or hub name whose tokenizer and image settings belong to it.
        out: Folder to make.

    Raises:
        ConfigError: ``out`` exists, the processor cannot be read or would not fit the model, or transformers refuses
            to write the model.
    """
    out = check_free(out)
    try:
        processor = AutoProcessor.from_pretrained(check_folder(pretrained), trust_remote_code=False)
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise ConfigError(f"{pretrained}: the processor cannot be read: {remote_code_hint(error)}") from error
    _fit_processor(processor, model.config, pretrained)
    staging = out.with_name(out.name + ".part")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        model.save_pretrained(staging, safe_serialization=True)
        processor.save_pretrained(staging)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, ValueError | TypeError):
            raise ConfigError(f"{pretrained}: transformers refuses to write it: {error}") from error
        raise
    if out.is_dir():
        out.rmdir()
    os.replace(staging, out)
    return out


def _fit_processor(processor: Any, config: PretrainedConfig, pretrained: str) -> None:
    """Makes transformers' processor fit a LLaVA's config, and tries it on one image.

    Raises:
        ConfigError: It gives other image tokens than the model reads.
    """
    if not (hasattr(processor, "image_processor") and hasattr(processor, "patch_size")):
        raise ConfigError(f"{pretrained}: {type(processor).__name__} is no processor of images and text")
    vision = config.vision_config
    side = vision.image_size
    processor.patch_size = vision.patch_size
    processor.vision_feature_select_strategy = config.vision_feature_select_strategy
    # The class token, which every tower that an adapter accepts puts before its patches.
    processor.num_additional_image_tokens = 1
    images = processor.image_processor
    images.size = {"shortest_edge": side}
    images.crop_size = {"height": side, "width": side}
    if (pinpoints := getattr(config, "image_grid_pinpoints", None)) is not None:
        images.image_grid_pinpoints = pinpoints
    try:
        inputs = processor(
            images=np.zeros((side, side, 3), np.uint8), text=f"{processor.image_token} a", return_tensors="pt"
        )
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"{pretrained}: transformers' processor cannot be used: {error}") from error
    found = int((inputs.input_ids == config.image_token_id).sum())
    least = (side // vision.patch_size) ** 2
    if found < least or tuple(inputs.pixel_values.shape[-2:]) != (side, side):
        raise ConfigError(
            f"{pretrained}: transformers' processor makes {found} image tokens (id {config.image_token_id}) of "
            f"an image of {side} x {side} pixels, the model needs {least} or more; mend its image token"
        )
