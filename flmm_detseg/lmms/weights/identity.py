"""Which LMM trained parts belong to: a few values of each of its weights, as checkpoints record them.

Heads read one LMM's attention. On another one with the same shapes they load, and draw nonsense. What is recorded comes
from the weights in memory, so it depends neither on the folder they were read from nor on how that folder is cut into
files, and 16-bit and 32-bit copies of the same weights have the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from flmm_detseg.compat.transformers5 import stored_names
from flmm_detseg.errors import CheckpointError
from flmm_detseg.lmms.added.added_tokens import is_added
from flmm_detseg.lmms.base import LMMAdapter
from flmm_detseg.lmms.lora.layers import lora_group_of
from flmm_detseg.utils.whole_files import dump_json

_SAMPLES = 8
_FORMAT = 1
# Relative distance of neighbours in bfloat16; below float16's smallest numbers.
_NEIGHBOUR, _SMALLEST = 2**-7, 1e-7


def lmm_identity(lmm: LMMAdapter) -> str | None:
    """Samples of the weights that checkpoints of a model with this LMM do not hold, as text.

    Takes 0.08 s for LLaVA-1.5-7B: 8 values of each tensor are read, evenly spread, rounded to bfloat16.

    Args:
        lmm: May have LoRA, which is left out, and weights that are trained, which are too.

    Returns:
        JSON; None where there are no values (meta device), or all are trained.
    """
    stored = {name.replace(".base_layer.", ".") for name in lmm.checkpoint_buffers}
    weights = {
        key: weight
        for key, (name, weight) in _weights(lmm).items()
        if not weight.requires_grad and f"model.{name}" not in stored
    }
    return _text(weights) if weights else None


def identity_of(weights: Mapping[str, Tensor]) -> str:
    """What :func:`lmm_identity` says of an LMM that has not been built.

    Args:
        weights: All of its weights by the names that files have for them, or what :func:`sampled` keeps of each.

    Returns:
        JSON.
    """
    return _text({_key(name): weights[name] for name in sorted(weights)})


@torch.no_grad()
def sampled(weight: Tensor) -> Tensor:
    """The values of a weight that its identity consists of, as a tensor that has the same."""
    places = torch.arange(1, 2 * _SAMPLES, 2, device=weight.device) * weight.numel() // (2 * _SAMPLES)
    return weight.detach().flatten()[places]


def _text(weights: Mapping[str, Tensor]) -> str:
    return dump_json({"format": _FORMAT, "dtypes": _dtypes(weights), "samples": _samples(weights)})


def check_identity(lmm: LMMAdapter, recorded: str | None, source: str, *, allow_other: bool = False) -> None:
    """Compares an LMM with the one that a file records; a file that records none is accepted with a warning.

    Args:
        lmm: As it was built, before anything trained is loaded.
        recorded: The file's, of :func:`lmm_identity`.
        source: Named in messages.
        allow_other: Another LMM is accepted, with a warning.

    Raises:
        CheckpointError: It is another LMM; says how much of it.
    """
    weights = {key: weight for key, (_, weight) in _weights(lmm).items()}
    if not weights:
        return
    if recorded is None:
        _warn(f"{source} does not say on which LMM it was trained; its heads fit no other one")
        return
    try:
        content = json.loads(recorded)
        known, theirs, dtypes = (
            content["format"] == _FORMAT,
            dict(content["samples"]),
            list(content["dtypes"]),
        )
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{source} is damaged: it records {recorded!r:.80} as its LMM") from error
    common = [key for key in weights if key in theirs]
    if not known or not common:
        _warn(
            f"{source} records its LMM in a way that cannot be compared with this one; its heads fit no other one"
        )
        return
    ours = _samples({key: weights[key] for key in common})
    # A detour through float16 may round to the neighbour.
    exact = "float16" not in {*dtypes, *_dtypes({key: weights[key] for key in common})}
    differing = [key for key in common if not _equal(ours[key], theirs[key], exact)]
    if not differing:
        return
    first = _weights(lmm)[differing[0]][0]
    what = f"{source} was trained on another LMM: {len(differing)} of {len(common)} weights differ (first: {first})"
    if allow_other:
        _warn(f"{what}. It is loaded all the same, as was asked for")
        return
    raise CheckpointError(
        f"{what}. Heads read one LMM's attention and draw nonsense on another's. Name the LMM it was trained on in "
        "`model.lmm.pretrained`, or say that you mean it: --allow-other-lmm (in Python allow_other_lmm=True, in a "
        "config model.allow_other_lmm)"
    )


def _warn(text: str) -> None:
    print_log(text, "current", logging.WARNING)


def _weights(lmm: LMMAdapter) -> dict[str, tuple[str, nn.Parameter]]:
    """The LMM's own weights by a short hash of the name that files have for them, in the order of these names; none of
    LoRA, none without values.
    """
    # LoRA moves the weight it stands beside to `base_layer`; the weight is the same.
    named = {
        name.replace(".base_layer.", "."): weight
        for name, weight in lmm.model.named_parameters()
        if not lora_group_of(name) and not is_added(name) and not weight.is_meta and weight.numel()
    }
    stored = stored_names(lmm.model, list(named))
    return {_key(stored[name]): (name, named[name]) for name in sorted(named, key=stored.__getitem__)}


def _key(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def _dtypes(weights: Mapping[str, Tensor]) -> list[str]:
    return sorted({str(weight.dtype).removeprefix("torch.") for weight in weights.values()})


@torch.no_grad()
def _samples(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Per tensor its shape's samples in bfloat16, 4 hexadecimal digits each."""
    picked = [sampled(weight).to(torch.bfloat16) for weight in weights.values()]
    values = torch.stack([values.cpu() for values in picked]).view(torch.int16).numpy()
    return {key: row.astype(">i2").tobytes().hex() for key, row in zip(weights, values)}


def _equal(ours: str, theirs: Any, exact: bool) -> bool:
    if ours == theirs:
        return True
    if exact or not isinstance(theirs, str) or len(theirs) != len(ours):
        return False
    return np.allclose(_values(ours), _values(theirs), rtol=_NEIGHBOUR, atol=_SMALLEST)


def _values(samples: str) -> np.ndarray:
    bits = np.frombuffer(bytes.fromhex(samples), ">u2").astype(np.uint32) << 16
    return bits.view(np.float32)
