"""What trained tensors stand beside: hashes of the frozen weights that are not the LMM's (SAM's image encoder)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from flmm_detseg.errors import CheckpointError
from flmm_detseg.models.checkpoint import trainable_tensors
from flmm_detseg.models.grounding_module import GroundingModule

_DEPTH = 3
# Copies that a refiner makes of itself before training: of the same file as its encoder.
_KEPT = ".box_parts."


def frozen_hashes(model: GroundingModule) -> dict[str, str]:
    """sha256 of the weights that neither the LMM nor a checkpoint holds, by part.

    Args:
        model: As it was built.

    Returns:
        By the part's name (``heads.phrase.sam``) the hash over names, dtypes and bits of its frozen parameters.
    """
    held = trainable_tensors(model)
    parts: dict[str, dict[str, Tensor]] = {}
    for name, parameter in model.named_parameters():
        if not name.startswith("lmm.") and name not in held and _KEPT not in name:
            parts.setdefault(".".join(name.split(".")[:_DEPTH]), {})[name] = parameter.detach()
    return {part: _hash(parts[part]) for part in sorted(parts)}


def check_frozen(model: GroundingModule, stored: Mapping[str, str], source: str) -> None:
    """Compares frozen weights with those that a model was stored beside.

    Args:
        model: Built, on the CPU or not.
        stored: Of :func:`frozen_hashes`.
        source: Named in the error.

    Raises:
        CheckpointError: A part differs, or there are other ones.
    """
    found = frozen_hashes(model)
    if wrong := [part for part in sorted({*found, *stored}) if found.get(part) != stored.get(part)]:
        raise CheckpointError(
            f"{source}: the frozen weights of {', '.join(wrong)} are not those that it was trained with. Put the file "
            f"that its config names (for SAM: `sam.checkpoint`) in its place, or ask for a folder that holds it "
            "(`flmm-detseg export pretrained ... --inside`)"
        )


def _hash(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
