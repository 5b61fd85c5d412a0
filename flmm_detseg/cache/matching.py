"""Which stored background does an image show? Proposals, the comparison of pixels, the choice among several."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from torch import Tensor

from flmm_detseg.cache.guard import ApproximateGuard, stale_tiles
from flmm_detseg.cache.index import Record, SessionHistory
from flmm_detseg.cache.keys import KeyMaker
from flmm_detseg.cache.settings import CacheSettings
from flmm_detseg.cache.shelves import Shelves
from flmm_detseg.cache.stats import CacheStats
from flmm_detseg.cache.types import BackgroundKey, Match, Namespace, PrefixKV

# Donors that the approximate level compares at most.
_MAX_DONORS = 64


@dataclass(frozen=True, eq=False)
class Query:
    """One image that looks for its background.

    Attributes:
        tiles: ``[N, tile_bytes]`` uint8.
        namespace: Owner and fingerprints.
        bucket: Backgrounds that it can be compared with.
        session: Stream that it belongs to.
        prefix_key: Prompt prefix of interest.
        live: ``[N]`` bool, False on letterbox tiles.
        maker: Names and hashes.
    """

    tiles: np.ndarray
    namespace: Namespace
    bucket: str
    session: str | None
    prefix_key: str | None
    live: np.ndarray
    maker: KeyMaker

    @cached_property
    def hashes(self) -> np.ndarray:
        """``[N]`` uint64; not computed when a session's last background fits."""
        return self.maker.tile_hashes(self.tiles)

    def names(self, record: Record) -> list[str]:
        """Units that would serve this image, the most useful first."""
        prefixes = [self.prefix_key] if self.prefix_key is not None else []
        return [self.maker.unit(self.namespace, record.entry_id, prefix) for prefix in (*prefixes, None)]


class Matcher:
    """Finds donors on the shelves.

    Args:
        shelves: Index and tiers.
        history: Last backgrounds of every stream.
        settings: See :class:`CacheSettings`.
        guard: Of the approximate level; None: the level is off.
        stats: Where hits are counted.
    """

    def __init__(
        self,
        shelves: Shelves,
        history: SessionHistory,
        settings: CacheSettings,
        guard: ApproximateGuard | None,
        stats: CacheStats,
    ) -> None:
        self._shelves, self._history, self._settings = shelves, history, settings
        self._guard, self._stats = guard, stats

    def exact(self, query: Query) -> Match | None:
        """The session's last backgrounds, then the votes of tile hashes; stored pixels decide."""
        index = self._shelves.index
        with self._shelves.lock:
            recent = [
                index.get(query.bucket, name) for name in self._history.recent(query.bucket, query.session)
            ]
        found = self._first_exact([record for record in recent if record is not None], query)
        if found is not None:
            return found
        with self._shelves.lock:
            voted = index.candidates(query.bucket, query.hashes)
        return self._first_exact([record for record in voted if record not in recent], query)

    def _first_exact(self, records: list[Record], query: Query) -> Match | None:
        nothing = np.zeros(0, np.int64)
        for record in self._ranked(records, query):
            pixels = self._shelves.pixels(record, query.names(record), query.tiles)
            if pixels is None or not np.array_equal(query.tiles[record.indices], pixels):
                continue
            if (found := self._serve(record, pixels, nothing, query, "exact")) is not None:
                return found
        return None

    def approximate(self, query: Query) -> Match | None:
        """A donor that is nearly equal, when that level is on."""
        settings, guard = self._settings.approximate, self._guard
        if settings is None or guard is None or not guard.enabled:
            return None
        with self._shelves.lock:
            known = self._shelves.index.records(query.bucket)
        donors = [record for record in known if record.pixels is not None and guard.allows(record.entry_id)]
        for record in self._ranked(donors[-_MAX_DONORS:], query):
            pixels = record.pixels
            if pixels is None:
                continue
            stale = stale_tiles(query.tiles[record.indices], pixels, settings)
            if stale is None:
                continue
            found = self._serve(record, pixels, record.indices[stale], query, "approximate")
            if found is not None:
                return found
        return None

    def _ranked(self, records: list[Record], query: Query) -> list[Record]:
        """Donors that leave little enough to compute, the best first."""
        num_live = int(np.count_nonzero(query.live))
        least = num_live * (1 - self._settings.max_object_share)
        ranked: list[tuple[bool, int, Record]] = []
        for record in records:
            covered = record.num_live(query.live)
            if covered < least or covered == 0:
                continue
            name = query.names(record)[0]
            stored = any(name in names for names in list(record.values.values()))
            ranked.append((query.prefix_key is not None and stored, covered, record))
        return [record for *_, record in sorted(ranked, key=lambda item: item[:2], reverse=True)]

    def _serve(
        self,
        record: Record,
        pixels: np.ndarray,
        stale: np.ndarray,
        query: Query,
        level: Literal["exact", "approximate"],
    ) -> Match | None:
        """Hands the stored values out; None when they are gone."""
        *prefix_name, features_name = query.names(record)
        l2 = self._shelves.use(record, prefix_name[0], pixels) if prefix_name else None
        # A prefix needs no features: they are handed out when they are at hand.
        l1 = self._shelves.use(record, features_name, pixels, fetch=l2 is None)
        if l1 is None and l2 is None:
            return None
        prefix = l2.value if l2 is not None and isinstance(l2.value, PrefixKV) else None
        features = l1.value if l1 is not None and isinstance(l1.value, Tensor) else None
        key = BackgroundKey(record.mask, pixels, record.entry_id, record.grid)
        served = "L3" if level == "approximate" else "L1" if l2 is None else "L2"
        self._stats.add("requests", served)
        self._stats.add("saved_ms", served, (l2 or l1).saved_ms)
        match = Match(key, level, stale, features, prefix)
        return self._shelves.hold(match, [unit for unit in (l1, l2) if unit is not None])
