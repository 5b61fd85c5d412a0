"""Writing a model in hub layout, as transformers and :mod:`flmm_detseg.lmms.loading` read it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from transformers import AutoProcessor, PreTrainedModel

from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.loading import check_folder


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

    Args:
        model: A plain model of transformers.
        pretrained: Folder or hub name whose tokenizer and image settings belong to it.
        out: Folder to make.

    Raises:
        ConfigError: ``out`` exists, or the processor cannot be read.
    """
    out = check_free(out)
    try:
        processor = AutoProcessor.from_pretrained(check_folder(pretrained))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{pretrained}: the processor cannot be read: {error}") from error
    staging = out.with_name(out.name + ".part")
    shutil.rmtree(staging, ignore_errors=True)
    model.save_pretrained(staging, safe_serialization=True)
    processor.save_pretrained(staging)
    if out.is_dir():
        out.rmdir()
    os.replace(staging, out)
    return out
