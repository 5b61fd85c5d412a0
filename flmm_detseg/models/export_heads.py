"""The trained parts of a checkpoint alone: what it takes to use a model, without the state of its training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from flmm_detseg.errors import ConfigError
from flmm_detseg.models.checkpoint import fingerprint, lmm_meta, read_checkpoint, read_file, states_file
from flmm_detseg.models.from_config import model_from_config
from flmm_detseg.models.grounding_lmm import GroundingLMM
from flmm_detseg.utils.configs import config_name
from flmm_detseg.utils.paths import find
from flmm_detseg.utils.provenance import file_hash
from flmm_detseg.utils.whole_files import put_in_place

# Entry of a run's message hub: sha256 of the frozen LMM, written by FrozenGuardHook.
_LMM_INFO = "lmm_fingerprint"


def export_heads(
    config: str | Path, checkpoint: str | Path, out: str | Path, *, allow_other_lmm: bool = False
) -> dict[str, Any]:
    """Writes the trained tensors of a checkpoint and which LMM they belong to; no optimizer, no schedule, no log.

    Args:
        config: Config of the model.
        checkpoint: What training wrote.
        out: File to write (``.pth``).
        allow_other_lmm: See :class:`GroundingLMM`.

    Returns:
        ``out``, ``num_tensors``, ``num_parameters``, ``megabytes``, ``lmm_recorded``: whether the file says which LMM
        it belongs to (False where the checkpoint did not prove it).

    Raises:
        ConfigError: There is a file at ``out``, or the config cannot be used.
        CheckpointError: The checkpoint does not fit.
    """
    out = Path(out)
    if out.exists():
        raise ConfigError(f"{out} exists already; name another file, or remove it first")
    model = model_from_config(config, checkpoint, device="cpu", allow_other_lmm=allow_other_lmm)
    source = find(checkpoint)
    proven = read_checkpoint(source).identity is not None or _same_lmm(source, model)
    meta = {"config": config_name(config), "checkpoint_sha256": file_hash(source)}
    if proven and not allow_other_lmm:
        meta |= lmm_meta(model.lmm)
    tensors = {name: value.clone() for name, value in model.trainable_state_dict().items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    torch.save({"meta": meta, "state_dict": tensors}, part)
    put_in_place(part, out)
    return {
        "out": str(out),
        "num_tensors": len(tensors),
        "num_parameters": sum(value.numel() for value in tensors.values()),
        "megabytes": round(out.stat().st_size / 1e6, 2),
        "lmm_recorded": proven and not allow_other_lmm,
    }


def _same_lmm(path: Path, model: GroundingLMM) -> bool:
    """Whether a checkpoint without a record was trained on this LMM: its run noted the sha256 of every frozen bit."""
    content: Any = read_file(states_file(path), zero=path.is_dir())
    for key in ("message_hub", "runtime_info", _LMM_INFO):
        content = content.get(key) if isinstance(content, Mapping) else None
    noted = content.get("before") if isinstance(content, Mapping) else None
    return noted is not None and noted == fingerprint(model.lmm)
