"""Which stored background does an image show? Proposals, the comparison of pixels, the choice among several."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from torch import Tensor

from flmm_detseg.store.approximate import ApproximateGuard, stale_tiles
from flmm_detseg.store.keys import KeyMaker
from flmm_detseg.store.records import BackgroundKey, Match, Namespace, PrefixKV
from flmm_detseg.store.settings import CacheSettings
from flmm_detseg.store.tiers import TieredStore
from flmm_detseg.store.tile_index import Record, SessionHistory

# Stored backgrounds that the approximate level compares at most.
_MAX_COMPARED = 64


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
        max_stale: Changed tiles that can be recomputed at most; None: any number.
        maker: Names and hashes.
    """

    tiles: np.ndarray
    namespace: Namespace
    bucket: str
    session: str | None
    prefix_key: str | None
    live: np.ndarray
    max_stale: int | None
    maker: KeyMaker

    @cached_property
    def hashes(self) -> np.ndarray:
        """``[N]`` uint64; not computed when a session's last background fits."""
        return self.maker.tile_hashes(self.tiles)

    def names(self, record: Record) -> list[str]:
        """Units that would serve this image, the most useful first."""
        prefixes = [self.prefix_key] if self.prefix_key is not None else []
        return [self.maker.unit(self.namespace, record.entry_id, prefix) for prefix in (*prefixes, None)]


def covers_enough(mask: np.ndarray, live: np.ndarray, max_object_share: float) -> bool:
    """Whether a background (``[N]`` bool) leaves little enough of an image to compute.

    Args:
        mask: Of the background.
        live: ``[N]`` bool of the image, False on letterbox tiles.
        max_object_share: See :class:`CacheSettings`.

    Returns:
        True: at most ``max_object_share`` of the live tiles is left; False also for a background without a live tile.
    """
    covered = int(np.count_nonzero(mask & live))
    return covered > 0 and covered >= int(np.count_nonzero(live)) * (1 - max_object_share)


class Matcher:
    """Finds stored backgrounds that an image shows.

    Args:
        tiers: Index and tiers.
        history: Last backgrounds of every stream.
        settings: See :class:`CacheSettings`.
        guard: Of the approximate level; None: the level is off.
    """

    def __init__(
        self,
        tiers: TieredStore,
        history: SessionHistory,
        settings: CacheSettings,
        guard: ApproximateGuard | None,
    ) -> None:
        self._tiers, self._history, self._settings = tiers, history, settings
        self._guard = guard

    def exact(self, query: Query) -> Match | None:
        """The session's last backgrounds, then the votes of tile hashes; stored pixels decide."""
        index = self._tiers.index
        with self._tiers.lock:
            recent = [
                index.get(query.bucket, name) for name in self._history.recent(query.bucket, query.session)
            ]
        found = self._first_exact([record for record in recent if record is not None], query)
        if found is not None:
            return found
        hashes = query.hashes
        with self._tiers.lock:
            proposals = index.proposals(query.bucket, hashes)
        return self._first_exact([record for record in proposals.records() if record not in recent], query)

    def _first_exact(self, records: list[Record], query: Query) -> Match | None:
        nothing = np.zeros(0, np.int64)
        for record in self._ranked(records, query):
            pixels = self._tiers.pixels(record, query.names(record), query.tiles)
            if pixels is None or not np.array_equal(query.tiles[record.indices], pixels):
                continue
            if (found := self._serve(record, pixels, nothing, query, "exact")) is not None:
                return found
        return None

    def approximate(self, query: Query) -> Match | None:
        """A stored background that is nearly equal, when that level is on."""
        settings, guard = self._settings.approximate, self._guard
        if settings is None or guard is None or not guard.enabled:
            return None

        def suits(record: Record) -> bool:
            return record.pixels is not None and guard.allows(record.entry_id)

        with self._tiers.lock:
            candidates = self._tiers.index.latest(query.bucket, _MAX_COMPARED, suits)
        for record in self._ranked(candidates, query):
            pixels = record.pixels
            if pixels is None:
                continue
            stale = stale_tiles(query.tiles[record.indices], pixels, settings)
            if stale is None or (query.max_stale is not None and len(stale) > query.max_stale):
                continue
            found = self._serve(record, pixels, record.indices[stale], query, "approximate")
            if found is not None:
                return found
        return None

    def _ranked(self, records: list[Record], query: Query) -> list[Record]:
        """Records that leave little enough to compute, the best first."""
        ranked: list[tuple[bool, int, Record]] = []
        for record in records:
            if not covers_enough(record.mask, query.live, self._settings.max_object_share):
                continue
            stored = False
            if query.prefix_key is not None:
                name = query.maker.unit(query.namespace, record.entry_id, query.prefix_key)
                stored = any(name in names for names in list(record.values.values()))
            ranked.append((stored, record.num_live(query.live), record))
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
        l2 = self._tiers.use(record, prefix_name[0], pixels) if prefix_name else None
        # A prefix needs no features: they are handed out when they are in memory, which does not count as a use.
        if l2 is None:
            l1 = self._tiers.use(record, features_name, pixels)
        else:
            l1 = self._tiers.peek(features_name, pixels)
        served = l2 or l1
        if served is None:
            return None
        prefix = l2.value if l2 is not None and isinstance(l2.value, PrefixKV) else None
        features = l1.value if l1 is not None and isinstance(l1.value, Tensor) else None
        key = BackgroundKey(record.mask, pixels, record.entry_id, record.grid)
        match = Match(key, level, stale, features, prefix, served.saved_ms)
        return self._tiers.pin(match, [unit for unit in (l1, l2) if unit is not None])
