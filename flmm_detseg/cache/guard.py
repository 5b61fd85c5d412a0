"""Level L3: when is a nearly equal donor acceptable, and does it keep its promise?"""

from __future__ import annotations

import math
import random
import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from scipy.stats import beta

from flmm_detseg.cache.settings import ApproximateSettings
from flmm_detseg.errors import ConfigError


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
    """Tiles that may carry text: many hard edges.

    Args:
        tiles: ``[n, p * p * 3]`` uint8, square RGB tiles.
        edge_step: Difference of neighbouring grey values that counts as an edge.
        edge_density: Share of neighbouring pairs from which a tile is text-bearing.

    Returns:
        ``[n]`` bool.

    Raises:
        ConfigError: The tiles are not square RGB.
    """
    side = math.isqrt(tiles.shape[1] // 3)
    if side * side * 3 != tiles.shape[1] or side < 2:
        raise ConfigError(f"the approximate level needs square RGB tiles, {tiles.shape[1]} bytes are none")
    grey = tiles.reshape(-1, side, side, 3).astype(np.int16).sum(axis=3) // 3
    edges = (np.abs(np.diff(grey, axis=1)) >= edge_step).sum(axis=(1, 2))
    edges += (np.abs(np.diff(grey, axis=2)) >= edge_step).sum(axis=(1, 2))
    return edges >= edge_density * 2 * side * (side - 1)


def stale_tiles(shown: np.ndarray, stored: np.ndarray, settings: ApproximateSettings) -> np.ndarray | None:
    """Compares a background with a donor.

    Args:
        shown: ``[n, tile_bytes]`` uint8, the image's tiles under the donor's mask.
        stored: The donor's.
        settings: Tolerances.

    Returns:
        Positions (in ``0..n-1``) of tiles that differ by more than ``tau``; None when the donor is refused: too many of
        them, or a tile that may carry text (in either image) differs at all. A changed digit is small in pixels and
        total in meaning.
    """
    changed = np.flatnonzero((shown != stored).any(axis=1))
    difference = np.abs(shown[changed].astype(np.int16) - stored[changed]).max(axis=1, initial=0)
    stale = changed[difference > settings.tau]
    if len(stale) > settings.share * len(stored):
        return None
    for tiles in (shown[changed], stored[changed]):
        if len(tiles) and text_bearing(tiles, settings.edge_step, settings.edge_density).any():
            return None
    return stale


class ApproximateGuard:
    """Counts how often approximate answers differ from full ones, and ends it. Thread-safe.

    Args:
        settings: Rates and limits.
        seed: Of the choice of shadow runs.
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
        """Whether this entry may be a donor: L3 is on and the entry has not been caught."""
        with self._lock:
            return self.enabled and entry_id not in self._barred

    def shadow(self, entry_id: str, agrees: Callable[[], bool]) -> bool | None:
        """Now and then computes an approximate answer in full as well.

        Args:
            entry_id: The donor.
            agrees: Does the full run and says whether its answer is the same.

        Returns:
            What ``agrees`` said; None when this hit was not chosen.
        """
        with self._lock:
            if self._random.random() >= self._settings.shadow_rate:
                return None
        agreed = agrees()
        self.record(entry_id, agreed)
        return agreed

    def record(self, entry_id: str, agreed: bool) -> None:
        """Takes note of one comparison."""
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
