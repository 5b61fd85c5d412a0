"""All tiers and the index over them: where a background's values are, and how they come and go."""

from __future__ import annotations

import logging
import queue
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from flmm_detseg.cache.blob import StoredValue, decode, encode
from flmm_detseg.cache.disk import DiskTier
from flmm_detseg.cache.evict import build_policy
from flmm_detseg.cache.index import Record, TileIndex
from flmm_detseg.cache.keys import KeyMaker
from flmm_detseg.cache.memory import MemoryTier, Unit, copy_value
from flmm_detseg.cache.redis_tier import RedisTier
from flmm_detseg.cache.settings import CacheSettings
from flmm_detseg.cache.stats import CacheStats
from flmm_detseg.cache.types import Match
from flmm_detseg.errors import ConfigError, DataError

LOGGER = logging.getLogger(__name__)


class Shelves:
    """Memory tiers (device, host) in front of remote ones (disk, Redis). Thread-safe.

    Args:
        settings: Budgets, folder, URL.
        maker: Names and checksums.
        stats: Where events are counted.
    """

    def __init__(self, settings: CacheSettings, maker: KeyMaker, stats: CacheStats) -> None:
        self.lock = threading.RLock()
        self.index = TileIndex()
        self._maker, self._stats, self._pin_host = maker, stats, settings.pin_host
        self._disk_prefix = settings.disk_prefix
        policy = build_policy(settings.eviction)
        budgets = {"device": settings.device_bytes, "host": settings.host_bytes}
        self._devices = {"device": settings.device, "host": "cpu"}
        try:
            torch.empty(0, device=settings.device)
            torch.empty(1, pin_memory=settings.pin_host)
        except RuntimeError as error:
            raise ConfigError(f"the cache's device or pinned memory cannot be used: {error}") from error
        # Fast ones first.
        self.memory = {
            name: MemoryTier(
                name, budget, policy, settings.tenant_bytes, lambda unit, n=name: self._evicted(n, unit)
            )
            for name, budget in budgets.items()
            if budget
        }
        self.remote: dict[str, DiskTier | RedisTier] = {}
        if settings.folder is not None:
            self.remote["disk"] = DiskTier(
                Path(settings.folder), settings.disk_bytes, policy, settings.tenant_bytes
            )
        if settings.redis_url is not None:
            self.remote["redis"] = RedisTier(settings.redis_url, settings.redis_ttl_s)
        self._queue: queue.Queue[tuple[Record, Unit] | None] | None = None
        if self.remote and settings.write_behind:
            self._queue = queue.Queue(settings.write_behind)
            threading.Thread(target=self._write_behind, args=(self._queue,), daemon=True).start()
        self._poll_s, self._next_poll = settings.poll_s, 0.0
        self._poll_lock = threading.Lock()

    # Looking.

    def poll(self, now: bool = False) -> bool:
        """Learns what other processes and machines stored, unless it just did; True when there was something new."""
        if not self.remote or (not now and time.monotonic() < self._next_poll):
            return False
        if not self._poll_lock.acquire(blocking=now):
            return False
        news = False
        try:
            self._next_poll = time.monotonic() + self._poll_s
            for place, tier in self.remote.items():
                for record, name in tier.poll(wait=now):
                    news |= self.attach(record, place, name)
        finally:
            self._poll_lock.release()
        return news

    def pixels(self, record: Record, names: list[str], tiles: np.ndarray) -> np.ndarray | None:
        """Stored pixels of a background, from memory or a remote tier.

        Args:
            record: The background.
            names: Units that would be useful, the most useful first; one that has to be fetched is one of them.
            tiles: The image: what is fetched must equal it.
        """
        pixels = record.pixels
        if pixels is not None:
            return pixels
        for name in names:
            unit = self._fetch(record, name, tiles)
            if unit is not None:
                return unit.key.pixels
        return None

    def use(self, record: Record, name: str, pixels: np.ndarray, fetch: bool = True) -> Unit | None:
        """A stored value, counted as used.

        Args:
            record: Its background.
            name: The unit's.
            pixels: The background's pixels that were compared with the image; a value of others is not handed out.
            fetch: Also from remote tiers.
        """
        with self.lock:
            unit = self._use_memory(record, name)
        elsewhere = any(name in record.values.get(place, ()) for place in self.remote)
        if unit is None and fetch and elsewhere:
            tiles = np.zeros((len(record.mask), pixels.shape[1]), np.uint8)
            tiles[record.indices] = pixels
            unit = self._fetch(record, name, tiles)
        if unit is None or not (unit.key.pixels is pixels or np.array_equal(unit.key.pixels, pixels)):
            return None
        for tier in self.remote.values():
            tier.touch(name)
        return unit

    def hold(self, match: Match, units: list[Unit]) -> Match:
        """Keeps units from being evicted for as long as the match is alive; their tensors live on in any case."""
        held: list[tuple[MemoryTier, str]] = []
        with self.lock:
            for unit in units:
                for tier in self.memory.values():
                    if unit.name in tier:
                        tier.pin(unit.name)
                        held.append((tier, unit.name))

        def release() -> None:
            for tier, name in held:
                tier.release(name)

        weakref.finalize(match, release).atexit = False
        return match

    # Coming and going.

    def store(self, record: Record, unit: Unit) -> bool:
        """Writes a value into every tier that takes it (L2 to disk only when wanted, never to Redis)."""
        stored = self._put_memory(record, unit)
        if not self._places(unit):
            return stored
        if self._queue is None:
            return self._put_remote(record, unit) or stored
        with self.lock:
            kept = self.memory["host"].peek(unit.name) if "host" in self.memory else None
        # The caller's tensors may change while they wait.
        kept = kept or replace(unit, value=copy_value(unit.value, "cpu"))
        try:
            self._queue.put_nowait((record, kept))
        except queue.Full:
            self._stats.add("refused", "busy")
            return stored
        return True

    def flush(self) -> None:
        """Waits until everything that was stored is written."""
        if self._queue is not None:
            self._queue.join()

    def _write_behind(self, waiting: queue.Queue[tuple[Record, Unit] | None]) -> None:
        while (item := waiting.get()) is not None:
            try:
                self._put_remote(*item)
            except Exception:
                # A tier answers for its own failures; whatever else it is must not end the thread.
                self._stats.add("errors", "write_behind")
                LOGGER.exception("a background could not be written")
            finally:
                waiting.task_done()
        waiting.task_done()

    def _places(self, unit: Unit) -> list[str]:
        if unit.level == "L1":
            return list(self.remote)
        return [place for place in self.remote if place == "disk" and self._disk_prefix]

    def _put_remote(self, record: Record, unit: Unit) -> bool:
        data: bytes | None = None
        stored = False
        for place in self._places(unit):
            tier = self.remote[place]
            value = StoredValue(
                unit.name,
                record.bucket,
                unit.tenant,
                record.scope,
                unit.level,
                unit.key,
                unit.saved_ms,
                unit.value,
            )
            data = encode(self._maker, value) if data is None else data
            if tier.put(value, record, data):
                self.attach(record, place, unit.name)
                stored = True
        return stored

    def attach(self, record: Record, place: str, name: str) -> bool:
        """Notes that a unit of a background is in a place; True when that was not known."""
        with self.lock:
            known = self.index.get(record.bucket, record.entry_id)
            if known is None:
                known = record
                self.index.add(record)
            names = known.values.setdefault(place, set())
            new = name not in names
            names.add(name)
            return new

    def forget(self, bucket: str, entry_id: str, place: str, name: str) -> None:
        """Notes that a unit is not in a place any more; a background without any is forgotten."""
        with self.lock:
            record = self.index.get(bucket, entry_id)
            if record is None:
                return
            empty = record.drop(place, name)
            if not self.memory.keys() & record.values.keys():
                record.pixels = None
            if empty:
                self.index.remove(record)

    def clear(self, scope: str | None) -> None:
        """Removes all values, or those of one tenant and vision fingerprint."""
        self.poll(now=True)
        with self.lock:
            for bucket in self.index.buckets():
                for record in self.index.records(bucket):
                    if scope is not None and record.scope != scope:
                        continue
                    for place, names in record.values.items():
                        for name in names if place in self.memory else ():
                            self.memory[place].remove(name)
                    record.values.clear()
                    record.pixels = None
                    self.index.remove(record)
        for tier in self.remote.values():
            tier.clear(None if scope is None else {scope})

    def close(self) -> None:
        """Writes what waits, then closes files and connections."""
        if self._queue is not None:
            self._queue.put(None)
            self._queue.join()
        for tier in self.remote.values():
            tier.close()

    def _use_memory(self, record: Record, name: str) -> Unit | None:
        found: Unit | None = None
        for place, tier in self.memory.items():
            unit = tier.peek(name)
            if unit is None:
                continue
            if not unit.intact:
                # Somebody wrote into a tensor that was handed out.
                tier.remove(name)
                self._stats.add("dropped", "written")
                self.forget(record.bucket, record.entry_id, place, name)
                continue
            tier.use(name)
            found = found or unit
        if found is not None and "device" in self.memory and name not in self.memory["device"]:
            self._put_memory(record, found)
            found = self.memory["device"].peek(name) or found
        return found

    def _put_memory(self, record: Record, unit: Unit) -> bool:
        stored = False
        for place, tier in self.memory.items():
            if name_known := unit.name in tier:
                stored = True
            if name_known or unit.num_bytes > tier.budget:
                continue
            value = copy_value(unit.value, self._devices[place], self._pin_host and place == "host")
            copy = replace(unit, value=value)
            with self.lock:
                if not tier.put(copy):
                    continue
                self.attach(record, place, unit.name)
                known = self.index.get(record.bucket, record.entry_id)
                assert known is not None
                if known.pixels is None:
                    known.pixels = unit.key.pixels
                stored = True
        return stored

    def _evicted(self, place: str, unit: Unit) -> None:
        self._stats.add("evicted", place)
        self.forget(unit.bucket, unit.key.entry_id, place, unit.name)

    def _fetch(self, record: Record, name: str, tiles: np.ndarray) -> Unit | None:
        """Reads a value from a remote tier into memory, if its own pixels equal the image's."""
        for place, tier in self.remote.items():
            if name not in record.values.get(place, ()):
                continue
            data = tier.get(name)
            if data is None:
                self.forget(record.bucket, record.entry_id, place, name)
                continue
            try:
                stored = decode(self._maker, data)
                if (stored.name, stored.bucket, stored.key.entry_id) != (
                    name,
                    record.bucket,
                    record.entry_id,
                ):
                    raise DataError("a stored background lies under another one's name")
            except DataError:
                self._stats.add("dropped", "corrupt")
                tier.discard(name)
                self.forget(record.bucket, record.entry_id, place, name)
                continue
            if not np.array_equal(stored.key.mask, record.mask):
                continue
            if not np.array_equal(tiles[record.indices], stored.key.pixels):
                continue
            unit = Unit(
                name, stored.level, stored.tenant, record.bucket, record.scope, stored.key,
                len(data), stored.saved_ms, stored.value,
            )  # fmt: skip
            self._put_memory(record, unit)
            with self.lock:
                return self._use_memory(record, name) or unit
        return None
