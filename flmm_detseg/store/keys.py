"""Names and tile hashes of backgrounds. Hashes only propose; the comparison of stored pixels decides."""

from __future__ import annotations

import hashlib
import math
import struct
from functools import lru_cache

import numpy as np

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.store.records import BackgroundKey, Namespace

# Part of every name: a change of what is hashed, or of the layout of stored files, makes other names.
FORMAT = "flmm-bg-2"
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def cut_tiles(image: np.ndarray, patch: int) -> np.ndarray:
    """Cuts a processed image (after resizing and padding, before normalisation) into the tower's patches.

    Args:
        image: ``[H, W, C]`` uint8; H and W are multiples of ``patch``.
        patch: Patch size in pixels.

    Returns:
        ``[N, patch * patch * C]`` uint8, patches in raster order, contiguous.

    Raises:
        DataError: Another dtype or shape.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[0] % patch or image.shape[1] % patch:
        raise DataError(
            f"cannot cut an image of shape {image.shape}, {image.dtype} into patches of {patch}: give the resized "
            "and padded uint8 image [H, W, C], both sides multiples of the patch size"
        )
    rows, cols, channels = image.shape[0] // patch, image.shape[1] // patch, image.shape[2]
    tiles = image.reshape(rows, patch, cols, patch, channels).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(tiles).reshape(rows * cols, patch * patch * channels)


def resolve_grid(num_tiles: int, grid: tuple[int, int] | None) -> tuple[int, int]:
    """The given grid, or the square one.

    Args:
        num_tiles: Tiles of the image.
        grid: ``(rows, cols)``.

    Returns:
        ``(rows, cols)``, as integers.

    Raises:
        ConfigError: The grid does not have that many tiles, or none was given and the number is no square.
    """
    side = math.isqrt(num_tiles)
    found = grid if grid is not None else (side, side)
    if found[0] * found[1] != num_tiles:
        raise ConfigError(f"{num_tiles} tiles are no grid of {found[0]} x {found[1]}: pass grid=(rows, cols)")
    return int(found[0]), int(found[1])


def flat_tiles(tiles: np.ndarray) -> np.ndarray:
    """``[N]`` bool: tiles of one colour (letterbox, plain wallpaper). ``tiles`` is ``[N, tile_bytes]`` uint8."""
    channels = 3 if tiles.shape[1] % 3 == 0 else 1
    pixels = tiles.reshape(len(tiles), -1, channels)
    return np.asarray((pixels == pixels[:, :1]).all(axis=(1, 2)))


def _mix(values: np.ndarray) -> np.ndarray:
    """Finalizer of splitmix64: spreads every input bit over the word."""
    values = (values ^ (values >> np.uint64(30))) * _MIX[0]
    values = (values ^ (values >> np.uint64(27))) * _MIX[1]
    return np.asarray(values ^ (values >> np.uint64(31)))


class KeyMaker:
    """Makes all names and hashes of one cache.

    Args:
        secret: At least 16 bytes. Processes and machines that share entries share it; without it names can neither
            be guessed nor stored files forged.

    Raises:
        ConfigError: The secret is shorter.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) < 16:
            raise ConfigError(
                f"the cache's secret has {len(secret)} bytes, wanted at least 16: give `secret` a longer text, or "
                "delete the file `secret` of the cache folder"
            )
        self._secret = hashlib.blake2b(secret, digest_size=32, person=b"flmm-bg-cache").digest()
        self._weights = lru_cache(maxsize=8)(self._make_weights)

    def _make_weights(self, num_words: int) -> np.ndarray:
        stream = hashlib.shake_256(self._secret + b"tile weights").digest(8 * num_words)
        return np.frombuffer(stream, dtype="<u8").astype(np.uint64)

    def digest(self, *parts: bytes | str | memoryview) -> str:
        """Keyed hash of a list of parts (32 hex digits); lengths keep neighbouring parts apart."""
        state = hashlib.blake2b(key=self._secret, digest_size=16)
        for part in (FORMAT, *parts):
            data = part.encode() if isinstance(part, str) else part
            state.update(struct.pack("<Q", len(data)))
            state.update(data)
        return state.hexdigest()

    def tile_hashes(self, tiles: np.ndarray, places: np.ndarray | None = None) -> np.ndarray:
        """Hashes of tiles with their places: equal tiles at other places get other hashes.

        Multilinear hashing with secret weights (strongly universal in the upper bits, Lemire & Kaser 2014), then a
        finalizer; all tiles in one numpy pass.

        Args:
            tiles: ``[N, tile_bytes]`` uint8.
            places: ``[N]`` raster indices; None means ``0..N-1``.

        Returns:
            ``[N]`` uint64.
        """
        spare = -tiles.shape[1] % 4
        padded = np.pad(tiles, ((0, 0), (0, spare))) if spare else np.ascontiguousarray(tiles)
        words = padded.view("<u4").astype(np.uint64)
        where = np.arange(len(tiles)) if places is None else places
        offsets = (where + 1).astype(np.uint64) * _GOLDEN
        return _mix((words * self._weights(words.shape[1])).sum(axis=1, dtype=np.uint64) + offsets)

    def tenant(self, namespace: Namespace) -> str:
        """Name of a tenant in stores that others may look into."""
        return self.digest("tenant", namespace.tenant)

    def scope(self, namespace: Namespace) -> str:
        """Name of what level L1 lives under: tenant and vision fingerprint."""
        return self.digest("scope", namespace.tenant, namespace.vision_fp)

    def bucket(self, namespace: Namespace, grid: tuple[int, int], tile_bytes: int) -> str:
        """Name of all backgrounds that an image can be compared with at all."""
        return self.digest("bucket", self.scope(namespace), struct.pack("<3I", *grid, tile_bytes))

    def unit(self, namespace: Namespace, entry_id: str, prefix_key: str | None) -> str:
        """Name of one stored value: vision features (``prefix_key`` None) or keys and values of one prefix."""
        if prefix_key is None:
            return self.digest("L1", self.scope(namespace), entry_id)
        return self.digest("L2", self.scope(namespace), namespace.llm_fp, prefix_key, entry_id)

    def key(
        self, tiles: np.ndarray, mask: np.ndarray, namespace: Namespace, grid: tuple[int, int] | None
    ) -> BackgroundKey:
        """The background of an image.

        Args:
            tiles: ``[N, tile_bytes]`` uint8, the whole image.
            mask: ``[N]`` bool, the tiles of the background group.
            namespace: Owner and fingerprints.
            grid: ``(rows, cols)``; None means square.

        Returns:
            Its tiles, and an id that depends on them, the grid and the namespace.

        Raises:
            DataError: Shapes or dtypes do not fit.
        """
        check_tiles(tiles)
        if mask.dtype != np.bool_ or mask.shape != (len(tiles),):
            raise DataError(f"the background mask is {mask.dtype} {mask.shape}, wanted bool ({len(tiles)},)")
        grid = resolve_grid(len(tiles), grid)
        mask, pixels = mask.copy(), tiles[mask]
        mask.flags.writeable = pixels.flags.writeable = False
        return BackgroundKey(mask, pixels, self.entry_id(mask, pixels, namespace, grid), grid)

    def entry_id(
        self, mask: np.ndarray, pixels: np.ndarray, namespace: Namespace, grid: tuple[int, int]
    ) -> str:
        """Name of a background (32 hex digits)."""
        header = struct.pack("<4I", *grid, *pixels.shape)
        packed, flat = np.packbits(mask).tobytes(), pixels.reshape(-1).data
        return self.digest("entry", self.scope(namespace), pixels.dtype.str, header, packed, flat)


def frozen_key(key: BackgroundKey) -> BackgroundKey:
    """The key, or a copy that nobody can write to."""
    if not (key.mask.flags.writeable or key.pixels.flags.writeable):
        return key
    mask, pixels = key.mask.copy(), key.pixels.copy()
    mask.flags.writeable = pixels.flags.writeable = False
    return BackgroundKey(mask, pixels, key.entry_id, key.grid)


def check_tiles(tiles: np.ndarray) -> None:
    """Refuses what is no ``[N, tile_bytes]`` uint8.

    Args:
        tiles: The image's tiles.

    Raises:
        DataError: Another dtype or rank.
    """
    if tiles.dtype != np.uint8 or tiles.ndim != 2 or not tiles.size:
        raise DataError(f"tiles are {tiles.dtype} {tiles.shape}, wanted uint8 [N, tile_bytes]: see cut_tiles")
