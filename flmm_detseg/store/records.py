"""Records that the modules of the store pass to each other: frozen, without behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Namespace:
    """Whose entries, made by which weights; nothing is ever shared between two namespaces.

    Attributes:
        tenant: Owner of the images.
        vision_fp: Fingerprint of everything that the vision features depend on (level L1).
        llm_fp: Fingerprint of everything that the prefix' keys and values depend on (level L2).
    """

    tenant: str
    vision_fp: str
    llm_fp: str


@dataclass(frozen=True, eq=False)
class BackgroundKey:
    """A background: which tiles, and their pixels. The pixels, not the name, decide about equality.

    Attributes:
        mask: ``[N]`` bool, tiles of the cached background group.
        pixels: ``[n, tile_bytes]`` uint8 of those tiles in raster order, ``n == mask.sum()``.
        entry_id: Keyed hash over tenant, vision fingerprint, shapes, mask and pixels, hex.
        grid: ``(rows, cols)`` of the patches, ``rows * cols == N``: equal tiles in another grid are another image.
    """

    mask: np.ndarray
    pixels: np.ndarray
    entry_id: str
    grid: tuple[int, int] = (0, 0)

    @property
    def indices(self) -> np.ndarray:
        """Raster indices of the background group, int64, ascending."""
        return np.flatnonzero(self.mask).astype(np.int64)


@dataclass(frozen=True, eq=False)
class PrefixKV:
    """Keys and values of a prompt's prefix, one tensor ``[1, kv_heads, P, head_dim]`` per decoder layer.

    Attributes:
        keys: After the rotary embedding.
        values: As the layers made them.
    """

    keys: list[Tensor]
    values: list[Tensor]

    @property
    def length(self) -> int:
        """Number of tokens P."""
        return self.keys[0].shape[-2]


@dataclass(frozen=True, eq=False)
class Match:
    """A stored background that an image shows again.

    Attributes:
        key: The stored background (its mask says which patches need not be computed).
        level: Whether every tile is equal, or only nearly every one (level L3).
        stale: Raster indices (int64, ascending) of mask tiles whose pixels differ (changed tiles); empty when exact.
            They must be recomputed as object tokens.
        features: ``[n, D]`` vision features in raster order (L1), None when they are not stored any more.
        prefix: Keys and values of the prefix (L2), None when not stored for this prefix.
        saved_ms: Milliseconds that serving it saves, as measured when it was stored.
    """

    key: BackgroundKey
    level: Literal["exact", "approximate"]
    stale: np.ndarray
    features: Tensor | None
    prefix: PrefixKV | None
    saved_ms: float = 0.0

    @property
    def served(self) -> Literal["L1", "L2", "L3"]:
        """The level that serves the request."""
        if self.level == "approximate":
            return "L3"
        return "L1" if self.prefix is None else "L2"
