"""Backgrounds whose right values follow from their pixels, so that every value a cache serves can be checked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flmm_detseg.store.background_cache import BackgroundCache
from flmm_detseg.store.keys import cut_tiles
from flmm_detseg.store.records import BackgroundKey, Match, Namespace, PrefixKV
from flmm_detseg.store.settings import CacheSettings

SIDE, PATCH = 8, 4
NAMESPACE = Namespace("tenant", "vision", "llm")
SAVED = {"L1": 5.0, "L2": 80.0}


def picture(seed: int) -> np.ndarray:
    """``[64, 48]`` tiles of noise."""
    image = np.random.default_rng(seed).integers(0, 256, (SIDE * PATCH, SIDE * PATCH, 3), dtype=np.uint8)
    return cut_tiles(image, PATCH)


def changed(tiles: np.ndarray, *places: int) -> np.ndarray:
    """The picture with other pixels in some tiles."""
    other = tiles.copy()
    other[list(places)] ^= 255
    return other


def mask_of(*objects: int) -> np.ndarray:
    """Everything is background but some tiles."""
    mask = np.ones(SIDE * SIDE, bool)
    mask[list(objects)] = False
    return mask


def features_of(pixels: np.ndarray, dim: int = 8) -> Tensor:
    """``[n, dim]`` float32: another background has other features."""
    words = torch.from_numpy(pixels.astype(np.float32))
    generator = torch.Generator().manual_seed(0)
    return words @ torch.randn(pixels.shape[1], dim, generator=generator) + words.sum()


def prefix_of(pixels: np.ndarray, prefix_key: str) -> PrefixKV:
    """Two layers of keys and values ``[1, 2, n + 1, 4]``."""
    base = features_of(pixels, 8).reshape(1, -1, 2, 4).transpose(1, 2)
    base = torch.cat([torch.full_like(base[:, :, :1], float(len(prefix_key))), base], dim=2)
    return PrefixKV([base, base * 2], [base * 3, base * 4])


def open_cache(**settings) -> BackgroundCache:
    """Settings for images of 64 tiles; everything is stored at first sight."""
    chosen = {"admission": "always", "min_tiles": 8, "poll_s": 0.0, "host_bytes": 16 << 20} | settings
    return BackgroundCache(CacheSettings(**chosen))


def insert(
    cache: BackgroundCache,
    tiles: np.ndarray,
    mask: np.ndarray,
    namespace: Namespace = NAMESPACE,
    prefix_key: str | None = None,
    session: str | None = None,
) -> tuple[bool, BackgroundKey]:
    """Inserts the right values."""
    key = cache.key(tiles, mask, namespace)
    prefix = None if prefix_key is None else prefix_of(key.pixels, prefix_key)
    features = features_of(key.pixels)
    stored = cache.insert(
        key,
        namespace,
        features=features,
        prefix=prefix,
        prefix_key=prefix_key,
        saved_ms=SAVED,
        session=session,
    )
    return stored, key


@dataclass
class Served:
    """What a match handed out, after checking it."""

    features: bool
    prefix: bool


def check(match: Match, tiles: np.ndarray, prefix_key: str | None = None) -> Served:
    """Fails when a match served anything but the right values of this image, bit for bit."""
    pixels = tiles[match.key.mask]
    assert match.level == "exact"
    assert np.array_equal(match.key.pixels, pixels)
    assert not len(match.stale)
    if match.features is not None:
        assert torch.equal(match.features, features_of(pixels))
    if match.prefix is not None:
        wanted = prefix_of(pixels, prefix_key or "")
        for found, right in zip(
            match.prefix.keys + match.prefix.values, wanted.keys + wanted.values, strict=True
        ):
            assert torch.equal(found, right)
    assert match.features is not None or match.prefix is not None
    return Served(match.features is not None, match.prefix is not None)
