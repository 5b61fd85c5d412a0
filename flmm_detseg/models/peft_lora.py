"""LoRA of a config's LMM to and from folders of PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from flmm_detseg.compat.transformers5 import stored_names
from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.lora.peft_folder import read_adapter, write_adapter
from flmm_detseg.models.checkpoint import IDENTITY, lmm_meta, trainable_tensors
from flmm_detseg.models.from_config import model_from_config, read_config
from flmm_detseg.models.pretrained.reading import base_fields
from flmm_detseg.utils.configs import config_name
from flmm_detseg.utils.paths import find
from flmm_detseg.utils.provenance import file_hash
from flmm_detseg.utils.whole_files import put_in_place

_LMM = "lmm.model."


def export_lora(
    config: str | Path, checkpoint: str | Path | None, out: str | Path, *, allow_other_lmm: bool = False
) -> dict[str, Any]:
    """Stores the LoRA of a checkpoint as PEFT does: ``peft.PeftModel.from_pretrained(lmm, out)`` reads it.

    Args:
        config: Config of a model whose LMM has LoRA.
        checkpoint: Its trained parts; None: the config's ``load_from``.
        out: Folder to make.
        allow_other_lmm: Accept a checkpoint that was trained on another LMM.

    Returns:
        ``out``, ``num_layers``, ``num_parameters``, ``ranks``, ``left_out``: what else changes the LMM and is in no
        adapter.

    Raises:
        ConfigError: There is something at ``out``, no LoRA, or Conv-LoRA.
        CheckpointError: The checkpoint does not fit.
    """
    out = Path(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ConfigError(f"{out} exists already; name a new folder, or remove it first")
    read = read_config(config)
    base = str(base_fields(read.model)["pretrained"])
    lmm: Any = model_from_config(read, checkpoint, device="cpu", allow_other_lmm=allow_other_lmm).lmm
    figures = write_adapter(lmm.model, base, out)
    tokens = getattr(lmm, "added_tokens", None)
    left_out = [] if tokens is None else ["added tokens"]
    return {"out": str(out), **figures, "left_out": [*left_out, *getattr(lmm, "added_parts", {})]}


def import_lora(adapter: str | Path, config: str | Path, out: str | Path) -> dict[str, Any]:
    """Turns an adapter of PEFT into a checkpoint with the LoRA of a config's LMM, to start a training from.

    Args:
        adapter: Folder that PEFT wrote.
        config: Config whose LMM has LoRA on the same linears, of the same ranks and scales, in whatever groups.
        out: File to write (``.pth``), for ``model.init_from``.

    Returns:
        ``out``, ``num_tensors``, ``num_parameters``, ``complete``: whether the model has nothing else that is trained.

    Raises:
        ConfigError: There is a file at ``out``, the config has no LoRA, or several groups on one linear.
        CheckpointError: The adapter is damaged, more than plain LoRA, or does not fit; lists what differs.
    """
    out = Path(out)
    if out.exists():
        raise ConfigError(f"{out} exists already; name another file, or remove it first")
    model = model_from_config(config, untrained=True, device="cpu")
    lmm: Any = model.lmm
    if not lmm.lora_groups:
        raise ConfigError(f"{config}: `model.lmm` has no `lora`, which could take the adapter's place")
    wanted = trainable_tensors(model)
    given = {f"{_LMM}{name}": value for name, value in read_adapter(lmm.model, find(adapter)).items()}
    stored = stored_names(model, list(given))
    # Frozen ones are read by nobody.
    tensors = {stored[name]: value for name, value in given.items() if stored[name] in wanted}
    # Which LMM it was trained on, an adapter says by a name only.
    facts = {key: value for key, value in lmm_meta(lmm).items() if key != IDENTITY}
    meta = {"config": config_name(config), "adapter_sha256": file_hash(adapter), **facts}
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    torch.save({"meta": meta, "state_dict": tensors}, part)
    put_in_place(part, out)
    return {
        "out": str(out),
        "num_tensors": len(tensors),
        "num_parameters": sum(value.numel() for value in tensors.values()),
        "complete": len(tensors) == len(wanted),
    }
