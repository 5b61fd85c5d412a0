"""One stored value as bytes: safetensors with a keyed checksum and the scope it was made for in the header."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from flmm_detseg.errors import DataError
from flmm_detseg.store.keys import KeyMaker
from flmm_detseg.store.memory import Level
from flmm_detseg.store.records import BackgroundKey, PrefixKV


@dataclass(frozen=True, eq=False)
class StoredValue:
    """What a file (or a Redis value) holds.

    Attributes:
        name: The unit's name.
        bucket: Images it can be compared with: names tenant, vision fingerprint, grid and tile size.
        tenant: Hashed owner.
        scope: Hashed tenant and vision fingerprint.
        level: ``L1`` or ``L2``.
        key: The background.
        saved_ms: Milliseconds one use saves.
        value: Vision features, or keys and values of a prefix.
    """

    name: str
    bucket: str
    tenant: str
    scope: str
    level: Level
    key: BackgroundKey
    saved_ms: float
    value: Tensor | PrefixKV


def _checksum(maker: KeyMaker, meta: dict[str, str], tensors: dict[str, Tensor]) -> str:
    parts: list[bytes | str] = ["file", json.dumps(meta, sort_keys=True)]
    for name, tensor in sorted(tensors.items()):
        parts += [name, f"{tensor.dtype} {tuple(tensor.shape)}"]
        parts.append(tensor.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return maker.digest(*parts)


def encode(maker: KeyMaker, stored: StoredValue) -> bytes:
    """Bytes of a value; nothing in them needs a pickle to be read."""
    tensors = {
        "mask": torch.from_numpy(stored.key.mask.astype(np.uint8)),
        "pixels": torch.from_numpy(np.array(stored.key.pixels)),
    }
    if isinstance(stored.value, PrefixKV):
        for layer, (keys, values) in enumerate(zip(stored.value.keys, stored.value.values, strict=True)):
            tensors[f"k{layer}"], tensors[f"v{layer}"] = keys, values
    else:
        tensors["features"] = stored.value
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    meta = {
        "name": stored.name,
        "bucket": stored.bucket,
        "tenant": stored.tenant,
        "scope": stored.scope,
        "level": stored.level,
        "entry": stored.key.entry_id,
        "rows": str(stored.key.grid[0]),
        "cols": str(stored.key.grid[1]),
        "saved_ms": repr(float(stored.saved_ms)),
    }
    return safetensors.torch.save(tensors, meta | {"checksum": _checksum(maker, meta, tensors)})


def decode(maker: KeyMaker, data: bytes) -> StoredValue:
    """Reads a value back.

    Args:
        maker: Checks the signature.
        data: What :func:`encode` wrote.

    Returns:
        The value; its tensors are on the CPU.

    Raises:
        DataError: The bytes are damaged, cut off, forged, or of another format.
    """
    try:
        (length,) = struct.unpack_from("<Q", data)
        meta = json.loads(data[8 : 8 + length])["__metadata__"]
        with torch.inference_mode(False):
            tensors = safetensors.torch.load(data)
        checksum = meta.pop("checksum")
        if checksum != _checksum(maker, meta, tensors):
            raise DataError("a stored background does not have its checksum")
        mask = tensors["mask"].numpy().astype(bool)
        pixels = tensors["pixels"].numpy()
        mask.flags.writeable = pixels.flags.writeable = False
        key = BackgroundKey(mask, pixels, meta["entry"], (int(meta["rows"]), int(meta["cols"])))
        layers = sum(name.startswith("k") for name in tensors)
        value: Tensor | PrefixKV = (
            tensors["features"]
            if meta["level"] == "L1"
            else PrefixKV(
                [tensors[f"k{i}"] for i in range(layers)], [tensors[f"v{i}"] for i in range(layers)]
            )
        )
        return StoredValue(
            meta["name"], meta["bucket"], meta["tenant"], meta["scope"], meta["level"], key,
            float(meta["saved_ms"]), value,
        )  # fmt: skip
    except (
        safetensors.SafetensorError,
        struct.error,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        # A flipped bit may surface in any of the parsers; DataError is a ValueError too.
        raise DataError(f"a stored background cannot be read ({error}): it is dropped") from error
