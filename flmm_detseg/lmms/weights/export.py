"""Writing a model in hub layout, as transformers and :mod:`flmm_detseg.lmms.weights.loading` read it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from transformers import AddedToken, AutoProcessor, PreTrainedModel

from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.family import Family
from flmm_detseg.lmms.weights.loading import remote_code_hint
from flmm_detseg.utils.hub import check_folder


def check_free(out: str | Path) -> Path:
    """Makes sure that nothing would be overwritten; returns the path.

    Args:
        out: Folder to be written.

    Returns:
        ``out`` as a path.

    Raises:
        ConfigError: There is something at ``out``.
    """
    out = Path(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ConfigError(f"{out} exists already; name a new folder, or remove it first")
    return out


def save_hub_model(
    family: Family, model: PreTrainedModel, pretrained: str, out: str | Path, added_tokens: Sequence[str] = ()
) -> Path:
    """Writes config, weights (safetensors) and the processor of the model it came from; all or nothing.

    What transformers' processor needs and this package's does not (patch size, image side, tokens of the tower) is
    written from the model's config, whatever the processor's files say or leave out.

    Args:
        family: Of the model.
        model: A plain model of transformers.
        pretrained: Folder or hub name whose tokenizer and image settings belong to it.
        out: Folder to make.
        added_tokens: Texts that became tokens of the model, in the order of their ids.

    Returns:
        ``out`` as a path.

    Raises:
        ConfigError: ``out`` exists, the processor cannot be read or would not fit the model, or transformers refuses
            to write the model.
    """
    out = check_free(out)
    try:
        processor = AutoProcessor.from_pretrained(check_folder(pretrained), trust_remote_code=False)
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise ConfigError(f"{pretrained}: the processor cannot be read: {remote_code_hint(error)}") from error
    family.fit_processor(processor, pretrained)
    processor.tokenizer.add_tokens(
        [AddedToken(token, special=False, normalized=False) for token in added_tokens]
    )
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
