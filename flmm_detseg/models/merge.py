"""An adapted LMM as an ordinary one: LoRA added to the weights, stored in hub layout."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.added.added_tokens import settle
from flmm_detseg.lmms.lmm import LMM
from flmm_detseg.lmms.weights.export import check_free, save_hub_model
from flmm_detseg.models.from_config import model_from_config, read_config


def merge_checkpoint(
    config: str | Path,
    checkpoint: str | Path | None,
    out: str | Path,
    dtype: str | None = None,
    *,
    allow_other_lmm: bool = False,
) -> dict[str, Any]:
    """Builds a config's model on the CPU, merges its LoRA and added tokens and writes the LMM, without heads.

    The result answers as the adapted LMM does, needs nothing of this package, and can be the ``pretrained`` of another
    config.

    Args:
        config: Config of the model.
        checkpoint: Its trained parts; None: the config's ``load_from``.
        out: Folder to make.
        dtype: Of weights and arithmetic; None: the config's. Small changes survive in ``"float32"`` only.
        allow_other_lmm: Accept a checkpoint that was trained on another LMM.

    Returns:
        ``out``, ``merged_layers``, ``num_parameters``, ``dtype``.

    Raises:
        ConfigError: The folder exists, the LMM is not made from stored weights, there is no LoRA, or it is Conv-LoRA,
            which depends on the input.
        CheckpointError: The checkpoint does not fit.
        RunError: Rounding to the dtype would change an answer.
    """
    check_free(out)
    read = copy.deepcopy(read_config(config))
    lmm = read.model.lmm
    if not lmm.get("pretrained"):
        raise ConfigError(
            f"{config}: `model.lmm` names no `pretrained` whose tokenizer could be stored with it"
        )
    if not any(lmm.get(name) for name in ("lora", "added_tokens", "parts")):
        raise ConfigError(
            f"{config}: `model.lmm` has no `lora`, no `added_tokens` and no `parts`; there is nothing to merge"
        )
    if dtype is not None:
        lmm.dtype = dtype
    model = model_from_config(read, checkpoint, device="cpu", allow_other_lmm=allow_other_lmm).lmm
    assert isinstance(model, LMM)  # what is built from `pretrained`
    count = model.merge_lora() if model.lora_groups else 0
    settle(model.model)
    for part in model.added_parts.values():
        part.settle(model.model)
    tokens = () if model.added_tokens is None else model.added_tokens.tokens
    save_hub_model(model.family, model.model, lmm.pretrained, out, tokens)
    return {
        "out": str(out),
        "merged_layers": count,
        "num_parameters": sum(parameter.numel() for parameter in model.model.parameters()),
        "dtype": str(model.model.dtype).removeprefix("torch."),
    }
