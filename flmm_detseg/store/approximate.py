"""Level L3: when may a nearly equal background be used, and how often are its answers wrong?"""

from __future__ import annotations

import math
import random
import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from scipy.stats import beta

from flmm_detseg.errors import ConfigError
from flmm_detseg.store.settings import ApproximateSettings

# Differences that correlate more than this with those one and two pixels away are not noise.
_ALIKE_NEXT, _ALIKE_AFTER = 0.4, 0.2
_DEVIATIONS = 4.0
# Noise changes at least this share of a tile's pixels.
_FEW = 0.25


def clopper_pearson(failures: int, trials: int, confidence: float) -> tuple[float, float]:
    """One-sided exact bounds of a failure rate.

    Args:
        failures: Of ``trials``.
        trials: Independent runs.
        confidence: Of each bound, for example 0.95.

    Returns:
        Lower and upper bound; (0, 1) without trials.
    """
    if trials == 0:
        return 0.0, 1.0
    lower = 0.0 if failures == 0 else float(beta.ppf(1 - confidence, failures, trials - failures + 1))
    upper = 1.0 if failures == trials else float(beta.ppf(confidence, failures + 1, trials - failures))
    return lower, upper


def text_bearing(tiles: np.ndarray, edge_step: int, edge_density: float) -> np.ndarray:
    """Tiles that may contain text: many hard edges, in whatever colour.

    Args:
        tiles: ``[n, p * p * 3]`` uint8, square RGB tiles.
        edge_step: Difference of neighbouring values of a channel that counts as an edge.
        edge_density: Least share of such pairs among the neighbouring pairs of a text-bearing tile.

    Returns:
        ``[n]`` bool.

    Raises:
        ConfigError: The tiles are not square RGB.
    """
    pixels = _square(tiles)
    side = pixels.shape[2]
    edges = np.zeros(len(tiles), dtype=np.int64)
    for axis in (2, 3):
        # Not of the grey values: red on blue is as dark as blue on red.
        hard = (np.abs(np.diff(pixels, axis=axis)) >= edge_step).any(axis=1)
        edges += np.count_nonzero(hard, axis=(1, 2))
    return np.asarray(edges >= edge_density * 2 * side * (side - 1))


def drawn(difference: np.ndarray) -> np.ndarray:
    """Tiles whose differences form a shape, as strokes do, rather than noise or an even shift.

    Noise is everywhere: a tile most of whose pixels differ alike, and a few otherwise, has something drawn on it.
    Strokes are wider than a pixel or longer than two: neighbours, and pixels two apart, differ alike. Noise of a sensor
    is alike at no distance; noise that went through a resampling filter is so next to it, but not two pixels away.

    Args:
        difference: ``[n, p * p * 3]`` signed, square RGB tiles of differences.

    Returns:
        ``[n]`` bool.

    Raises:
        ConfigError: The tiles are not square RGB.
    """
    channels = _square(difference)
    flat = channels.reshape(len(channels), 3, -1)
    middle = np.partition(flat, flat.shape[2] // 2, axis=2)[:, :, flat.shape[2] // 2, None]
    outside = (flat != middle).any(axis=1).mean(axis=1)
    found = (outside > 0) & (outside < _FEW)
    pixels = channels.astype(np.float32)
    pixels -= pixels.mean(axis=(2, 3), keepdims=True)
    for step, least in ((1, _ALIKE_NEXT), (2, _ALIKE_AFTER)):
        if step >= pixels.shape[2]:
            continue
        pairs = 2 * pixels.shape[2] * (pixels.shape[2] - step)
        products = np.zeros(pixels.shape[:2], np.float32)
        squares = np.full(pixels.shape[:2], 1e-9, np.float32)
        for one, other in (
            (pixels[:, :, step:], pixels[:, :, :-step]),
            (pixels[..., step:], pixels[..., :-step]),
        ):
            products += np.einsum("ncij,ncij->nc", one, other)
            squares += np.einsum("ncij,ncij->nc", one, one) / 2
            squares += np.einsum("ncij,ncij->nc", other, other) / 2
        # By chance noise reaches 1 / sqrt(pairs): small tiles have to be more alike.
        found |= (products / squares > max(least, _DEVIATIONS / math.sqrt(pairs))).any(axis=1)
    return np.asarray(found)


def stale_tiles(shown: np.ndarray, stored: np.ndarray, settings: ApproximateSettings) -> np.ndarray | None:
    """Compares an image with a stored background.

    Args:
        shown: ``[n, tile_bytes]`` uint8, the image's tiles under the stored background's mask.
        stored: The stored background's.
        settings: Tolerances.

    Returns:
        Positions (in ``0..n-1``) of tiles that differ by more than ``tau``, or that became brighter or darker unlike
        the rest; None when the stored background is refused: too many of them, a tile that may contain text (in either
        image) differs at all, or a tile's differences form a shape. A changed digit is few pixels, but another meaning.

    Raises:
        ConfigError: The tiles are not square RGB.
    """
    changed = np.flatnonzero((shown != stored).any(axis=1))
    if not len(changed):
        return changed
    difference = shown[changed].astype(np.int16) - stored[changed]
    large = np.abs(difference).max(axis=1) > settings.tau
    means = np.zeros((len(stored), 3))
    means[changed] = _square(difference).mean(axis=(2, 3))
    # An even change of a tile has no edge in it: only comparison with the other tiles shows it.
    uneven = np.abs(means - np.median(means, axis=0)).max(axis=1) > settings.tau / 2
    stale = np.union1d(np.flatnonzero(uneven), changed[large])
    if len(stale) > settings.share * len(stored):
        return None
    if drawn(difference).any():
        return None
    # Beyond the tolerance, whatever stands out of the noise may be text, however pale.
    pale = min(settings.edge_step, 2 * settings.tau + 1)
    for tiles in (shown[changed], stored[changed]):
        for chosen, step in ((tiles, settings.edge_step), (tiles[large], pale)):
            if text_bearing(chosen, step, settings.edge_density).any():
                return None
    return stale


def _square(tiles: np.ndarray) -> np.ndarray:
    """``[n, 3, p, p]`` int16."""
    side = math.isqrt(tiles.shape[1] // 3)
    if side * side * 3 != tiles.shape[1] or side < 2:
        raise ConfigError(f"the approximate level needs square RGB tiles, {tiles.shape[1]} bytes are none")
    return np.ascontiguousarray(tiles.reshape(-1, side, side, 3).transpose(0, 3, 1, 2), dtype=np.int16)


class ApproximateGuard:
    """Counts how often approximate answers differ from full ones; switches L3 off when too often. Thread-safe.

    Args:
        settings: Rates and limits.
        seed: Of the random choice of spot checks.
    """

    def __init__(self, settings: ApproximateSettings, seed: int | None = None) -> None:
        self._settings = settings
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        # entry -> [trials, disagreements]; the longest silent entry is forgotten first.
        self._entries: OrderedDict[str, list[int]] = OrderedDict()
        self._barred: set[str] = set()
        self._total = [0, 0]
        self.enabled = True

    def allows(self, entry_id: str) -> bool:
        """Whether this entry may be used: L3 is on and the entry has not failed too many spot checks."""
        with self._lock:
            return self.enabled and entry_id not in self._barred

    def spot_check(self, entry_id: str, agrees: Callable[[], bool]) -> bool | None:
        """Computes a random share of approximate answers in full as well.

        Args:
            entry_id: The matched entry.
            agrees: Does the full run; returns whether its answer is the same.

        Returns:
            What ``agrees`` returned; None when this hit was not chosen.
        """
        with self._lock:
            if self._random.random() >= self._settings.shadow_rate:
                return None
        agreed = agrees()
        self.record(entry_id, agreed)
        return agreed

    def record(self, entry_id: str, agreed: bool) -> None:
        """Counts one comparison."""
        with self._lock:
            entry = self._entries.setdefault(entry_id, [0, 0])
            self._entries.move_to_end(entry_id)
            if len(self._entries) > 4096:
                self._entries.popitem(last=False)
            for counts in (entry, self._total):
                counts[0] += 1
                counts[1] += not agreed
            if self._exceeds(*entry):
                self._barred.add(entry_id)
            if self._exceeds(*self._total):
                self.enabled = False

    @property
    def error_bound(self) -> float:
        """Upper bound of the rate of disagreement over all entries."""
        with self._lock:
            return clopper_pearson(self._total[1], self._total[0], self._settings.confidence)[1]

    def _exceeds(self, trials: int, failures: int) -> bool:
        lower, _ = clopper_pearson(failures, trials, self._settings.confidence)
        return lower > self._settings.max_disagreement
