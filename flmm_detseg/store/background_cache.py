"""The cache as its users see it: match an image against stored backgrounds, insert a new one."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from torch import Tensor

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.store.admission import GhostList, RateLimit, StaticStreams
from flmm_detseg.store.approximate import ApproximateGuard
from flmm_detseg.store.disk import DiskTier
from flmm_detseg.store.folder import folder_secret
from flmm_detseg.store.keys import KeyMaker, check_tiles, frozen_key, resolve_grid
from flmm_detseg.store.matching import Matcher, Query, covers_enough
from flmm_detseg.store.memory import Level, Unit, num_bytes_of
from flmm_detseg.store.records import BackgroundKey, Match, Namespace, PrefixKV
from flmm_detseg.store.settings import CacheSettings
from flmm_detseg.store.single_flight import Flight, SingleFlight
from flmm_detseg.store.stats import CacheStats
from flmm_detseg.store.tiers import TieredStore
from flmm_detseg.store.tile_index import Record, SessionHistory, make_record, pack_record


class BackgroundCache:
    """Backgrounds of images with their vision features (L1) and prefix keys and values (L2). Thread-safe.

    Tensors are copied when they are stored, and handed out without a copy: do not write to them. A background that was
    written to nevertheless is noticed and dropped. Nothing that fails in a store (full disk, damaged file, server away)
    reaches the caller: it is a miss.

    Args:
        settings: See :class:`CacheSettings`.

    Raises:
        ConfigError: A setting or the folder cannot be used.
    """

    def __init__(self, settings: CacheSettings | None = None) -> None:
        self.settings = settings or CacheSettings()
        self._stats = CacheStats()
        if self.settings.secret is not None:
            secret = self.settings.secret.encode()
        elif self.settings.folder is not None:
            secret = folder_secret(Path(self.settings.folder))
        else:
            secret = secrets.token_bytes(32)
        self._maker = KeyMaker(secret)
        self._tiers = TieredStore(self.settings, self._maker, self._stats)
        self._history = SessionHistory(self.settings.session_depth)
        self._ghosts = GhostList(self.settings.ghost_images)
        # Per thread: within a flight an image is matched again, which must not count as a second sighting.
        self._matched = threading.local()
        self._static = StaticStreams()
        self._rates = RateLimit(self.settings.tenant_inserts_per_s)
        approximate = self.settings.approximate
        self.guard = None if approximate is None else ApproximateGuard(approximate)
        self._matcher = Matcher(self._tiers, self._history, self.settings, self.guard)
        disk = self._tiers.remote.get("disk")
        leases = disk if isinstance(disk, DiskTier) else None
        self._flights = SingleFlight(
            None if leases is None else lambda name: leases.acquire(name, self.settings.lease_s),
            None if leases is None else leases.release,
            self.settings.flight_timeout_s,
            None if leases is None else lambda name: leases.renew(name, self.settings.lease_s),
            self.settings.lease_s / 3,
        )

    def key(
        self,
        tiles: np.ndarray,
        mask: np.ndarray,
        namespace: Namespace,
        *,
        grid: tuple[int, int] | None = None,
    ) -> BackgroundKey:
        """The background of an image.

        Args:
            tiles: ``[N, tile_bytes]`` uint8, all tiles of the processed image (:func:`~.keys.cut_tiles`).
            mask: ``[N]`` bool, tiles of the background group.
            namespace: Owner and fingerprints.
            grid: ``(rows, cols)``; None means square.

        Returns:
            Its tiles, and an id that depends on them, the grid and the namespace.

        Raises:
            DataError: Shapes or dtypes do not fit.
            ConfigError: ``grid`` does not fit.
        """
        return self._maker.key(tiles, mask, namespace, grid)

    def match(
        self,
        tiles: np.ndarray,
        namespace: Namespace,
        *,
        session: str | None = None,
        prefix_key: str | None = None,
        grid: tuple[int, int] | None = None,
        live: np.ndarray | None = None,
        max_stale: int | None = None,
        exact: bool = False,
    ) -> Match | None:
        """Looks for a stored background that this image shows; no network runs for it.

        A request may call this twice; it calls :meth:`count` once, with what served it.

        Order: the session's last backgrounds; votes of tile hashes; the approximate level when it is on. Stored pixels
        decide. Among several, one whose prefix is stored wins, then the one with the most live tiles.

        Args:
            tiles: ``[N, tile_bytes]`` uint8, all tiles of the processed image.
            namespace: Owner and fingerprints.
            session: Stream that the image belongs to.
            prefix_key: Prompt prefix (system tokens, separators, layout, positions); None: L2 is of no use.
            grid: ``(rows, cols)``; None means square.
            live: ``[N]`` bool, False on letterbox tiles; None: all are live.
            max_stale: Changed tiles of a nearly equal background that can be recomputed at most; None: any number.
            exact: No nearly equal background, whatever the settings.

        Returns:
            The background with what is stored of it (features, keys and values) and which tiles have changed; None:
            nothing fits.

        Raises:
            DataError: Shapes or dtypes do not fit.
            ConfigError: ``grid`` does not fit.
        """
        started = time.perf_counter()
        check_tiles(tiles)
        bucket = self._maker.bucket(namespace, resolve_grid(len(tiles), grid), tiles.shape[1])
        live = _live_tiles(live, len(tiles))
        query = Query(tiles, namespace, bucket, session, prefix_key, live, max_stale, self._maker)
        self._tiers.poll()
        found = self._matcher.exact(query) or (None if exact else self._matcher.approximate(query))
        with self._tiers.lock:
            if found is None:
                if not getattr(self._matched, "already", False):
                    self._ghosts.push_image(bucket, query.hashes)
            else:
                self._history.push(bucket, session, found.key.entry_id)
        self._stats.add("match_ms", amount=1000 * (time.perf_counter() - started))
        return found

    def count(self, match: Match | None) -> None:
        """Counts a finished request.

        Args:
            match: What served it; None: it was computed.
        """
        self._stats.add("requests", "miss" if match is None else match.served)
        if match is not None:
            self._stats.add("saved_ms", match.served, match.saved_ms)

    def insert(
        self,
        key: BackgroundKey,
        namespace: Namespace,
        *,
        features: Tensor | None,
        prefix: PrefixKV | None = None,
        prefix_key: str | None = None,
        saved_ms: Mapping[str, float],
        session: str | None = None,
        live: np.ndarray | None = None,
    ) -> bool:
        """Stores a background, or adds a value to a stored one.

        Args:
            key: From :meth:`key` or from a match.
            namespace: The same that made the key.
            features: ``[n, D]`` vision features of its tiles; None: only the prefix is new.
            prefix: Keys and values of the prefix that ends with this background.
            prefix_key: Names the prefix; given exactly when ``prefix`` is.
            saved_ms: Milliseconds that a use of each level saves: ``{"L1": ..., "L2": ...}``.
            session: Stream that the image belongs to.
            live: ``[N]`` bool, False on the image's letterbox tiles; None: all are live.

        Returns:
            False when nothing was stored: too small, too many objects beside it, first sighting, over a quota or
            budget, or of a level that is not kept.

        Raises:
            DataError: Features do not fit the key, or the key was made for another namespace.
            ConfigError: ``prefix`` without ``prefix_key`` or the reverse; unknown names in ``saved_ms``.
        """
        key = frozen_key(key)
        self._check_insert(key, namespace, features, prefix, prefix_key, saved_ms)
        given: tuple[tuple[Level, Tensor | PrefixKV | None, str | None], ...]
        given = (("L1", features, None), ("L2", prefix, prefix_key))
        values = [
            (level, value, name)
            for level, value, name in given
            if value is not None and level in self.settings.levels
        ]
        if not values:
            return False
        record = self._admit(key, namespace, session, _live_tiles(live, len(key.mask)))
        if record is None:
            return False
        stored = False
        for level, value, prefix_name in values:
            unit = Unit(
                self._maker.unit(namespace, key.entry_id, prefix_name), level, self._maker.tenant(namespace),
                record.bucket, record.scope, key, num_bytes_of(value) + key.pixels.nbytes + key.mask.nbytes,
                float(saved_ms.get(level, 0.0)), value,
            )  # fmt: skip
            if self._tiers.store(record, unit):
                stored = True
                self._stats.add("inserts", level)
            else:
                self._stats.add("refused", "budget")
        if stored:
            with self._tiers.lock:
                self._history.push(record.bucket, session, key.entry_id)
        return stored

    def declare_static(self, session: str, namespace: Namespace) -> None:
        """This stream repeats its background (fixed camera, kiosk): it is stored at first sight."""
        with self._tiers.lock:
            self._static.add((self._maker.scope(namespace), session))

    def would_store(
        self,
        key: BackgroundKey,
        namespace: Namespace,
        *,
        session: str | None = None,
        live: np.ndarray | None = None,
    ) -> bool:
        """Whether :meth:`insert` would take this background now: no request has to wait for what is not stored.

        Args:
            key: See :meth:`insert`.
            namespace: See :meth:`insert`.
            session: See :meth:`insert`.
            live: See :meth:`insert`.

        Returns:
            True: :meth:`insert` would store it, as far as can be known before.
        """
        bucket = self._maker.bucket(namespace, key.grid, key.pixels.shape[1])
        hashes = self._maker.tile_hashes(key.pixels, key.indices)
        candidate = make_record(key, bucket, self._maker.scope(namespace), hashes)
        with self._tiers.lock:
            if self._tiers.index.get(bucket, key.entry_id) is not None:
                return True
            if self._unworthy(key, _live_tiles(live, len(key.mask))) is not None:
                return False
            return self._is_static(candidate.scope, session) or self._ghosts.knows(candidate, hashes)

    @contextmanager
    def single_flight(self, name: str) -> Iterator[Flight]:
        """Only one thread or process (of one folder) at a time computes what ``name`` stands for.

        Example::

            with cache.single_flight(key.entry_id) as flight:
                match = None if flight.leader else cache.match(...)
                if match is None:
                    ...  # compute and insert
        """
        with self._flights.enter(name) as flight:
            # Another process may have stored it after this one matched and before it came here.
            leader = flight.leader and not self._tiers.poll(now=True)
            self._stats.add("flights", "led" if leader else "waited")
            self._matched.already = True
            try:
                yield Flight(leader)
            finally:
                self._matched.already = False

    def spot_check(self, match: Match, agrees: Callable[[], bool]) -> bool | None:
        """Checks an approximate match at random; see :meth:`ApproximateGuard.spot_check`. None for exact ones."""
        if match.level == "exact" or self.guard is None:
            return None
        agreed = self.guard.spot_check(match.key.entry_id, agrees)
        if agreed is not None:
            self._stats.add("shadow", "agreed" if agreed else "disagreed")
        return agreed

    def clear(self, namespace: Namespace | None = None) -> None:
        """Removes everything, or what one tenant stored with one vision fingerprint (with any language model).

        What waits to be written goes, too. Other processes on the folder, and other machines that run on the same
        Redis, drop their copies with their next request (within ``poll_s``). What stays: the disk tiers of machines
        that are off or cut off from Redis now, and what running requests use.

        Args:
            namespace: Tenant and fingerprints; None clears everything.

        Raises:
            RunError: The disk or Redis could not be cleared, so what is there will be served again; names them.
        """
        self._tiers.clear(None if namespace is None else self._maker.scope(namespace))

    def flush(self) -> None:
        """Waits until everything that was inserted is written (only with ``write_behind``)."""
        self._tiers.flush()

    def close(self) -> None:
        """Writes what waits, then closes files and connections."""
        self._tiers.close()

    def stats(self) -> dict[str, float | dict[str, float]]:
        """Numbers by metric: hits by level, milliseconds saved, bytes by tier, refusals by reason, ..."""
        self._measure()
        return self._stats.as_dict()

    def stats_table(self) -> str:
        """The same as a Markdown table."""
        self._measure()
        return self._stats.table()

    def prometheus(self) -> str:
        """The same as Prometheus text."""
        self._measure()
        return self._stats.prometheus()

    def _measure(self) -> None:
        with self._tiers.lock:
            self._stats.set("backgrounds", "", len(self._tiers.index))
            for name, tier in self._tiers.memory.items():
                self._stats.set("bytes", name, tier.num_bytes)
                self._stats.set("values", name, len(tier))
                self._stats.set("in_flight", name, tier.num_pinned)
        for name, remote in self._tiers.remote.items():
            self._stats.set("errors", name, remote.num_errors)
            if isinstance(remote, DiskTier):
                self._stats.set("bytes", name, remote.num_bytes)
                self._stats.set("evicted", name, remote.num_evicted)
        if self.guard is not None:
            self._stats.set("approximate_enabled", "", float(self.guard.enabled))
            self._stats.set("approximate_error_bound", "", self.guard.error_bound)

    def _check_insert(
        self,
        key: BackgroundKey,
        namespace: Namespace,
        features: Tensor | None,
        prefix: PrefixKV | None,
        prefix_key: str | None,
        saved_ms: Mapping[str, float],
    ) -> None:
        if (prefix is None) != (prefix_key is None):
            raise ConfigError("prefix and prefix_key belong together: give both or none")
        if unknown := saved_ms.keys() - {"L1", "L2"}:
            raise ConfigError(f"saved_ms has the unknown levels {sorted(unknown)}: name them L1 and L2")
        if features is not None and (features.ndim != 2 or len(features) != len(key.pixels)):
            raise DataError(
                f"features are {tuple(features.shape)}, wanted [{len(key.pixels)}, D]: a row for every tile of the key"
            )
        if key.entry_id != self._maker.entry_id(key.mask, key.pixels, namespace, key.grid):
            raise DataError(
                "the key does not fit the namespace or its pixels were changed: make it with cache.key"
            )

    def _admit(
        self, key: BackgroundKey, namespace: Namespace, session: str | None, live: np.ndarray
    ) -> Record | None:
        """The record to store values under; None when the background is not to be stored."""
        bucket = self._maker.bucket(namespace, key.grid, key.pixels.shape[1])
        hashes = self._maker.tile_hashes(key.pixels, key.indices)
        candidate = make_record(key, bucket, self._maker.scope(namespace), hashes)
        with self._tiers.lock:
            record = self._tiers.index.get(bucket, key.entry_id)
            if record is not None and record.pixels is None and pack_record(record) != pack_record(candidate):
                damaged = record
            else:
                damaged = None
        if damaged is not None:
            # Its pixels were never seen here: the image's own mask is right, what a store says of it is not.
            self._tiers.discard(damaged)
            self._stats.add("dropped", "corrupt")
        with self._tiers.lock:
            record = self._tiers.index.get(bucket, key.entry_id)
            refused = None
            if record is not None and record.pixels is not None:
                if not np.array_equal(record.pixels, key.pixels):
                    # Two backgrounds under one name: the first one stays, the second one is computed every time.
                    refused = "collision"
            elif (refused := self._unworthy(key, live)) is None and record is None:
                # A damaged record shows that the background was seen before.
                seen = damaged is not None or self._is_static(candidate.scope, session)
                if not seen and not self._ghosts.admits(candidate, hashes):
                    refused = "first_sighting"
            if refused is None and not self._rates.allows(namespace.tenant):
                refused = "rate"
        if refused is not None:
            self._stats.add("refused", refused)
            return None
        return record or candidate

    def _unworthy(self, key: BackgroundKey, live: np.ndarray) -> str | None:
        """Why this background would never be used, or save too little; None when it is worth storing."""
        if np.count_nonzero(key.mask & live) < self.settings.min_tiles:
            return "small"
        return None if covers_enough(key.mask, live, self.settings.max_object_share) else "objects"

    def _is_static(self, scope: str, session: str | None) -> bool:
        return self.settings.admission == "always" or (scope, session) in self._static


def _live_tiles(live: np.ndarray | None, num_tiles: int) -> np.ndarray:
    if live is None:
        return np.ones(num_tiles, bool)
    if live.shape != (num_tiles,) or live.dtype != np.bool_:
        raise DataError(f"live is {live.dtype} {live.shape}, wanted bool ({num_tiles},)")
    return live
