"""All tiers and the index over them: where a background's values are, and how they come and go."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from flmm_detseg.errors import ConfigError, DataError, RunError
from flmm_detseg.store.disk import DiskTier
from flmm_detseg.store.eviction import build_policy
from flmm_detseg.store.keys import KeyMaker
from flmm_detseg.store.memory import MemoryTier, Unit, copy_value
from flmm_detseg.store.records import Match
from flmm_detseg.store.redis_tier import RedisTier
from flmm_detseg.store.serialise import StoredValue, decode, encode
from flmm_detseg.store.settings import CacheSettings
from flmm_detseg.store.stats import CacheStats
from flmm_detseg.store.tile_index import Record, TileIndex
from flmm_detseg.store.write_behind import WriteBehind

LOGGER = logging.getLogger(__name__)
_Epoch = tuple[int, int]


class TieredStore:
    """Memory tiers (device, host) in front of remote ones (disk, Redis). Thread-safe.

    Args:
        settings: Budgets, folder, URL.
        maker: Names and checksums.
        stats: Where events are counted.

    Raises:
        ConfigError: Unknown eviction policy, or device, pinned memory, folder or server cannot be used.
    """

    def __init__(self, settings: CacheSettings, maker: KeyMaker, stats: CacheStats) -> None:
        self.lock = threading.RLock()
        self.index = TileIndex()
        self._maker, self._stats, self._pin_host = maker, stats, settings.pin_host
        self._disk_prefix = settings.disk_prefix
        policy = build_policy(settings.eviction)
        budgets = {"device": settings.device_bytes, "host": settings.host_bytes}
        self._devices = {"device": settings.device or "cpu", "host": "cpu"}
        try:
            torch.empty(0, device=settings.device or "cpu")
            torch.empty(1, pin_memory=settings.pin_host)
        except RuntimeError as error:
            raise ConfigError(f"the cache's device or pinned memory cannot be used: {error}") from error
        # Fast ones first.
        self.memory = {
            name: MemoryTier(name, budget, policy, settings.tenant_bytes, partial(self._evicted, name))
            for name, budget in budgets.items()
            if budget
        }
        self.remote: dict[str, DiskTier | RedisTier] = {}
        if settings.folder is not None:
            self.remote["disk"] = DiskTier(
                Path(settings.folder), settings.disk_bytes, policy, maker, settings.tenant_bytes
            )
        if settings.redis_url is not None:
            self.remote["redis"] = RedisTier(settings.redis_url, settings.redis_ttl_s, maker)
        self._max_records = settings.index_records
        # How often everything ("") and each scope was cleared: a value from before the last time is not stored.
        self._clears: Counter[str] = Counter()
        self._closed = False
        self._behind: WriteBehind[tuple[Record, Unit, _Epoch]] | None = None
        if self.remote and settings.write_behind:
            self._behind = WriteBehind(
                settings.write_behind, self._write, lambda: self._stats.add("errors", "write_behind")
            )
        self._poll_s, self._next_poll = settings.poll_s, 0.0
        # Scopes that another machine cleared and that this one's disk still holds.
        self._unfinished: set[str | None] = set()
        self._poll_lock = threading.Lock()

    # Reading.

    def poll(self, now: bool = False) -> bool:
        """Reads what other processes and machines stored, at most once per ``poll_s``; True when there was news."""
        if not self.remote or (not now and time.monotonic() < self._next_poll):
            return False
        if not self._poll_lock.acquire(blocking=now):
            return False
        news = False
        try:
            self._next_poll = time.monotonic() + self._poll_s
            for place, tier in self.remote.items():
                found = tier.poll()
                for scope in found.cleared:
                    self._drop(scope)
                    if place == "redis" and "disk" in self.remote:
                        # The message came to this machine only here.
                        self._unfinished.add(scope)
                for bucket, entry_id, name in found.gone:
                    self.forget(bucket, entry_id, place, name)
                for record, name in found.records:
                    news |= self.attach(record, place, name)
            for scope in tuple(self._unfinished):
                if self.remote["disk"].clear(None if scope is None else {scope}):
                    self._unfinished.discard(scope)
        finally:
            self._poll_lock.release()
        return news

    def pixels(self, record: Record, names: list[str], tiles: np.ndarray) -> np.ndarray | None:
        """Stored pixels of a background, from memory or a remote tier.

        Args:
            record: The background.
            names: Units that would be useful, the most useful first; one that has to be fetched is one of them.
            tiles: The image: what is fetched must equal it.

        Returns:
            ``[n, tile_bytes]`` uint8; None: no tier has them, or they are not those of the image.
        """
        pixels = record.pixels
        if pixels is not None:
            return pixels
        for name in names:
            unit = self._fetch(record, name, tiles)
            if unit is not None:
                return unit.key.pixels
        return None

    def use(self, record: Record, name: str, pixels: np.ndarray) -> Unit | None:
        """A stored value, counted as used.

        Args:
            record: Its background.
            name: The unit's.
            pixels: The background's pixels that were compared with the image; a value of others is not handed out.

        Returns:
            The unit, with its tensors; None: it is gone, or belongs to other pixels.
        """
        with self.lock:
            unit = self._use_memory(record, name)
        elsewhere = any(name in record.values.get(place, ()) for place in self.remote)
        if unit is None and elsewhere:
            tiles = np.zeros((len(record.mask), pixels.shape[1]), np.uint8)
            tiles[record.indices] = pixels
            unit = self._fetch(record, name, tiles)
        if unit is None or not _shows(unit, pixels):
            return None
        for tier in self.remote.values():
            tier.touch(name)
        return unit

    def peek(self, name: str, pixels: np.ndarray) -> Unit | None:
        """As :meth:`use`, but only what lies in memory, and not counted as used."""
        with self.lock:
            found = [unit for tier in self.memory.values() if (unit := tier.peek(name)) is not None]
        return next((unit for unit in found if unit.intact and _shows(unit, pixels)), None)

    def pin(self, match: Match, units: list[Unit]) -> Match:
        """Keeps units from being evicted for as long as the match is alive; their tensors live on in any case."""
        pinned: list[tuple[MemoryTier, str]] = []
        with self.lock:
            for unit in units:
                for tier in self.memory.values():
                    if unit.name in tier:
                        tier.pin(unit.name)
                        pinned.append((tier, unit.name))

        def release() -> None:
            for tier, name in pinned:
                tier.release(name)

        weakref.finalize(match, release).atexit = False
        return match

    # Writing and removing.

    def store(self, record: Record, unit: Unit) -> bool:
        """Writes a value into every tier that accepts it (L2 to disk only with ``disk_prefix``, never to Redis)."""
        epoch = self._epoch(record.scope)
        stored = self._put_memory(record, unit, epoch)
        if not self._places(unit):
            return stored
        if self._closed:
            return stored
        if self._behind is None:
            return self._put_remote(record, unit, epoch) or stored
        with self.lock:
            kept = self.memory["host"].peek(unit.name) if "host" in self.memory else None
        # The caller's tensors may change while they wait.
        kept = kept or replace(unit, value=copy_value(unit.value, "cpu"))
        if self._behind.put((record, kept, epoch)):
            return True
        self._stats.add("refused", "busy")
        return stored

    def flush(self) -> None:
        """Waits until everything that was stored is written."""
        if self._behind is not None:
            self._behind.flush()

    def _write(self, item: tuple[Record, Unit, _Epoch]) -> None:
        # Another process may have cleared it while it waited.
        self.poll(now=True)
        self._put_remote(*item)

    def _places(self, unit: Unit) -> list[str]:
        if unit.level == "L1":
            return list(self.remote)
        return [place for place in self.remote if place == "disk" and self._disk_prefix]

    def _put_remote(self, record: Record, unit: Unit, epoch: _Epoch) -> bool:
        data: bytes | None = None
        stored = False
        for place in self._places(unit):
            if epoch != self._epoch(record.scope):
                break
            tier = self.remote[place]
            value = StoredValue(
                unit.name, record.bucket, unit.tenant, record.scope, unit.level, unit.key, unit.saved_ms, unit.value
            )  # fmt: skip
            if data is None:
                data = encode(self._maker, value)
                if not unit.intact:
                    # Somebody wrote into a tensor that was handed out, before it was encoded or meanwhile.
                    self._stats.add("dropped", "written")
                    break
            if not tier.put(value, record, data):
                continue
            # What another process cleared while this was written must be removed, too.
            self.poll(now=True)
            with self.lock:
                wanted = epoch == self._epoch(record.scope)
                if wanted:
                    self.attach(record, place, unit.name)
                    stored = True
            if not wanted:
                tier.discard(unit.name)
        return stored

    def attach(self, record: Record, place: str, name: str) -> bool:
        """Records that a unit of a background is in a tier; True when that was not known."""
        with self.lock:
            known = self.index.get(record.bucket, record.entry_id)
            if known is None:
                if len(self.index) >= self._max_records and (oldest := self.index.surplus()) is not None:
                    self.index.remove(oldest)
                known = record
                self.index.add(record)
            names = known.values.setdefault(place, set())
            new = name not in names
            names.add(name)
            return new

    def forget(self, bucket: str, entry_id: str, place: str, name: str) -> None:
        """Records that a unit is no longer in a tier; a background without any is forgotten."""
        with self.lock:
            record = self.index.get(bucket, entry_id)
            if record is None:
                return
            empty = record.drop(place, name)
            if not self.memory.keys() & record.values.keys():
                record.pixels = None
            if empty:
                self.index.remove(record)

    def discard(self, record: Record) -> None:
        """Removes a background and all its values, wherever they are."""
        with self.lock:
            places = {place: list(names) for place, names in record.values.items()}
            self._drop_record(record)
        for place, names in places.items():
            for name in names if place in self.remote else ():
                self.remote[place].discard(name)

    def clear(self, scope: str | None) -> None:
        """Removes all values, or those of one tenant and vision fingerprint; also those that wait to be written.

        Args:
            scope: Hash of tenant and vision fingerprint; None clears everything.

        Raises:
            RunError: A tier could not be cleared; nothing of it is left in memory.
        """
        self.poll(now=True)
        # What is being written or fetched at this moment is from before, too.
        self._drop(scope)
        failed = [
            place for place, tier in self.remote.items() if not tier.clear(None if scope is None else {scope})
        ]
        self._drop(scope)
        if failed:
            raise RunError(
                f"the background cache is cleared in memory, but not in {' and '.join(failed)} (see the log); what is "
                "there will be served again: clear again when it answers"
            )

    def _epoch(self, scope: str) -> _Epoch:
        return self._clears[""], self._clears[scope]

    def _drop(self, scope: str | None) -> None:
        """Forgets all records, or those of a scope, and takes their values out of memory."""
        with self.lock:
            self._clears[scope or ""] += 1
            for bucket in self.index.buckets():
                for record in self.index.records(bucket):
                    if scope is None or record.scope == scope:
                        self._drop_record(record)

    def _drop_record(self, record: Record) -> None:
        for place, names in record.values.items():
            for name in names if place in self.memory else ():
                self.memory[place].remove(name)
        record.values.clear()
        record.pixels = None
        self.index.remove(record)

    def close(self) -> None:
        """Writes what waits, then closes files and connections. Nothing is written afterwards."""
        with self.lock:
            closed, self._closed = self._closed, True
        if closed:
            return
        if self._behind is not None:
            self._behind.close()
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
            self._put_memory(record, found, self._epoch(record.scope))
            found = self.memory["device"].peek(name) or found
        return found

    def _put_memory(self, record: Record, unit: Unit, epoch: _Epoch) -> bool:
        stored = False
        for place, tier in self.memory.items():
            if name_known := unit.name in tier:
                stored = True
            if name_known or unit.num_bytes > tier.budget:
                continue
            try:
                value = copy_value(unit.value, self._devices[place], self._pin_host and place == "host")
            except (RuntimeError, MemoryError) as error:
                # The device has other users; a request goes on without its entry.
                LOGGER.warning(
                    "no room for a background in %s memory (%s)", place, str(error).partition("\n")[0]
                )
                self._stats.add("refused", "memory")
                continue
            copy = replace(unit, value=value)
            with self.lock:
                if epoch != self._epoch(record.scope) or not tier.put(copy):
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
            epoch = self._epoch(record.scope)
            data = tier.get(name)
            if data is None:
                # A tier that does not answer has not said that the value is gone.
                if not tier.paused:
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
            self._put_memory(record, unit, epoch)
            with self.lock:
                return self._use_memory(record, name) or unit
        return None


def _shows(unit: Unit, pixels: np.ndarray) -> bool:
    """Whether the unit's background has these pixels."""
    return unit.key.pixels is pixels or np.array_equal(unit.key.pixels, pixels)
