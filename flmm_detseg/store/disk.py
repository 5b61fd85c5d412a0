"""Values on disk: one file each, an SQLite index beside them; survives kill -9, full disks and several processes.

Order of a write: temporary file -> fsync -> rename -> fsync of the folder -> row. A file without a row, or a row
without its file, is what a crash can leave; both are dropped at the next start. One process writes at a time
(``flock``), readers never wait. Not for network file systems: SQLite's write-ahead log and ``flock`` need one machine.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import sqlite3
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flmm_detseg.store.disk_index import (
    IndexConnection,
    IndexReader,
    announce_clear,
    begin_anew,
    wants_new_index,
)
from flmm_detseg.store.eviction import EvictionPolicy
from flmm_detseg.store.folder import ENTRY_NAME, claim_folder, mark_folder
from flmm_detseg.store.keys import KeyMaker
from flmm_detseg.store.serialise import StoredValue
from flmm_detseg.store.tile_index import News, Record, pack_record, sign_record

LOGGER = logging.getLogger(__name__)
_LOCK_WAIT_S, _PAUSE_S = 5.0, 10.0
_UNIT_NAME = re.compile("[0-9a-f]{32}")
# A lease that ran out, or one from before the machine was started (or of a version that used the wall clock).
_OVER = "leases.expires < ? OR instr(leases.owner, ?) != 1"


def _this_boot() -> str:
    """Names the time since which the monotonic clock runs; the same in all processes."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        # Not Linux. A lease from before a restart is then waited for as long as any other.
        return "boot"


class DiskTier:
    """Values in one folder, shared by any number of processes of one machine. Thread-safe.

    Args:
        folder: Created when absent. See :func:`~flmm_detseg.store.folder.claim_folder`.
        budget: Bytes of all files.
        policy: Order of eviction within a level (L2 goes first).
        maker: Signs rows.
        tenant_budget: Bytes one tenant may hold; its own files make room. None: no limit.
    """

    def __init__(
        self,
        folder: Path,
        budget: int,
        policy: EvictionPolicy,
        maker: KeyMaker,
        tenant_budget: int | None = None,
    ) -> None:
        self._folder, self._files = folder, folder / "entries"
        self._budget, self._policy, self._maker = budget, policy, maker
        self._tenant_budget = budget if tenant_budget is None else min(budget, tenant_budget)
        # Leases run by the monotonic clock, which all processes share and nobody sets; it begins anew with the machine.
        self._boot = _this_boot()
        self._owner = f"{self._boot}/{os.getpid()}-{uuid.uuid4().hex}"
        # Requests have a connection and a lock of their own: they must not wait while a thread writes a file. Who takes
        # both locks takes the writer's first.
        self._writing, self._mutex = threading.Lock(), threading.Lock()
        self._writer = IndexConnection(folder, maintains=True)
        self._requests = IndexConnection(folder, maintains=False)
        self._reader = IndexReader(self._requests, maker, self._unlink)
        self._paused_until = 0.0
        self._used_lock = threading.Lock()
        self._used: Counter[str] = Counter()
        self.num_errors = 0
        self.num_evicted = 0
        claim_folder(folder)
        mark_folder(folder, maker)
        with self._guarded("open", self._writer):
            self._clean()
        with self._guarded("open", self._requests), self._mutex:
            self._reader.skip_clears()

    # What requests call.

    def put(self, stored: StoredValue, record: Record, data: bytes) -> bool:
        """Writes a value; False when it did not fit or could not be written (the request goes on all the same)."""
        if len(data) > self._tenant_budget or self.paused:
            return False
        path, temporary = self._path(stored.name), self._files / f"{stored.name}.{uuid.uuid4().hex}.tmp"
        with self._guarded("write", self._writer):
            with self._exclusive():
                if self._has(stored.name):
                    return True
                self._make_room(len(data), stored.tenant)
                try:
                    _write(temporary, data)
                    os.replace(temporary, path)
                    _sync_folder(self._files)
                    self._insert_row(stored, record, len(data))
                except (OSError, sqlite3.Error):
                    # A full disk may still allow the removal; what is left is an orphan, removed at the next start.
                    temporary.unlink(missing_ok=True)
                    path.unlink(missing_ok=True)
                    raise
                with self._mutex:
                    self._reader.wrote(stored.name, record)
            return True
        return False

    def get(self, name: str) -> bytes | None:
        """The file's bytes; None when there is none (any more)."""
        try:
            return self._path(name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._failed("read", error)
            return None

    def touch(self, name: str) -> None:
        """Counts a use, also one that memory served; stored with the next write."""
        with self._used_lock:
            # Last use last.
            self._used[name] = self._used.pop(name, 0) + 1

    def discard(self, name: str) -> None:
        """Removes a value (damaged, or not wanted any more)."""
        with self._guarded("remove", self._requests), self._mutex:
            self._remove(self._requests, name)

    @property
    def paused(self) -> bool:
        """Whether the disk failed a short while ago."""
        return time.monotonic() < self._paused_until

    def clear(self, scopes: set[str] | None) -> bool:
        """Removes everything, or what lives under some scopes; other processes learn it with their next poll.

        Args:
            scopes: Hashes of tenant and vision fingerprint; None clears everything.

        Returns:
            False when the disk failed: something may be left.
        """
        with self._guarded("clear", self._writer), self._exclusive():
            # First the message: a process that reads it later knows that what it stored before must go.
            self._announce(scopes)
            for name, scope in self._writer.execute("SELECT name, scope FROM units").fetchall():
                if scopes is None or scope in scopes:
                    self._remove(self._writer, name)
            # Once more: a process that read the first message may have read rows after it that still existed.
            self._announce(scopes)
            return True
        return False

    def _announce(self, scopes: set[str] | None) -> None:
        with self._mutex:
            for scope in {""} if scopes is None else scopes:
                self._reader.own_clears.add(announce_clear(self._writer, scope))

    def poll(self) -> News:
        """What other processes did since the last call. Own rows are among it."""
        with self._guarded("poll", self._requests), self._mutex:
            return self._reader.read()
        return News()

    def acquire(self, name: str, ttl_s: float) -> bool:
        """Takes the lease of a computation; True for its only holder (or when no lease can be written)."""
        with self._guarded("lease", self._requests), self._mutex:
            now = time.monotonic()
            cursor = self._requests.execute(
                "INSERT INTO leases VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, "
                f"expires = excluded.expires WHERE {_OVER}",
                (name, self._owner, now + ttl_s, now, f"{self._boot}/"),
            )
            return cursor.rowcount == 1
        return True

    def renew(self, name: str, ttl_s: float) -> None:
        """Extends the lease: its computation still runs."""
        with self._guarded("lease", self._requests), self._mutex:
            query = "UPDATE leases SET expires = ? WHERE name = ? AND owner = ?"
            self._requests.execute(query, (time.monotonic() + ttl_s, name, self._owner))

    def release(self, name: str) -> None:
        """Gives the lease back."""
        with self._guarded("lease", self._requests), self._mutex:
            query = "DELETE FROM leases WHERE name = ? AND owner = ?"
            self._requests.execute(query, (name, self._owner))

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        with self._guarded("count", self._requests), self._mutex:
            return _sum(self._requests, "")
        return 0

    def close(self) -> None:
        """Closes the index."""
        with self._writing, self._mutex:
            self._writer.close()
            self._requests.close()

    # Rows and files.

    def _path(self, name: str) -> Path:
        return self._files / f"{name}.safetensors"

    def _remove(self, index: IndexConnection, name: str) -> None:
        index.execute("DELETE FROM units WHERE name = ?", (name,))
        self._unlink(name)

    def _unlink(self, name: str) -> None:
        # What a damaged row calls a name must not lead to other files.
        if _UNIT_NAME.fullmatch(name):
            self._path(name).unlink(missing_ok=True)

    def _has(self, name: str) -> bool:
        row = self._writer.execute("SELECT bytes FROM units WHERE name = ?", (name,)).fetchone()
        try:
            return row is not None and self._path(name).stat().st_size == row[0]
        except FileNotFoundError:
            return False

    def _insert_row(self, stored: StoredValue, record: Record, num_bytes: int) -> None:
        score = self._policy.score(self._clock(), 1, stored.saved_ms, num_bytes, self._tick())
        self._writer.execute(
            "INSERT OR REPLACE INTO units (name, level, tenant, scope, bucket, entry, rows, cols, mask, voters, "
            "digest, signature, bytes, saved_ms, freq, score) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, ?)",
            (stored.name, stored.level, stored.tenant, stored.scope, stored.bucket, stored.key.entry_id,
             *record.grid, *pack_record(record), sign_record(self._maker, stored.name, record), num_bytes,
             stored.saved_ms, score),
        )  # fmt: skip

    def _clock(self) -> float:
        query = "SELECT CAST(value AS REAL) FROM state WHERE name = 'clock'"
        row = self._writer.execute(query).fetchone()
        return row[0] if row else 0.0

    def _tick(self) -> float:
        """Numbers uses in their order. Not the time of day: after the clock went back, what is new would look old."""
        # The first number is larger than those of versions that wrote the time.
        self._writer.execute(
            "INSERT OR REPLACE INTO state SELECT 'tick', 1 + CAST(COALESCE((SELECT value FROM state WHERE name = "
            "'tick'), (SELECT MAX(CAST(score AS REAL)) FROM units), 0) AS REAL)"
        )
        return float(self._writer.execute("SELECT value FROM state WHERE name = 'tick'").fetchone()[0])

    def _make_room(self, num_bytes: int, tenant: str) -> None:
        self._flush_uses()
        used = _sum(self._writer, "WHERE tenant = ?", tenant)
        self._evict(used + num_bytes - self._tenant_budget, tenant)
        self._evict(_sum(self._writer, "") + num_bytes - self._budget, None)

    def _evict(self, wanted: int, tenant: str | None) -> None:
        while wanted > 0:
            # "L2" sorts after "L1", so L2 is first here. The casts: a damaged number must not end a request.
            row = self._writer.execute(
                "SELECT name, CAST(bytes AS INTEGER), CAST(score AS REAL) FROM units WHERE tenant = ? OR ? IS NULL "
                "ORDER BY level DESC, score LIMIT 1",
                (tenant, tenant),
            ).fetchone()  # fmt: skip
            if row is None:
                return
            self._remove(self._writer, row[0])
            clock = max(self._clock(), row[2])
            self._writer.execute("INSERT OR REPLACE INTO state VALUES ('clock', ?)", (clock,))
            wanted -= row[1]
            self.num_evicted += 1

    def _flush_uses(self) -> None:
        with self._used_lock:
            used, self._used = self._used, Counter()
        clock = self._clock()
        for name, count in used.items():
            casts = "CAST(freq AS INTEGER), CAST(saved_ms AS REAL), CAST(bytes AS INTEGER)"
            query = f"SELECT {casts} FROM units WHERE name = ?"
            row = self._writer.execute(query, (name,)).fetchone()
            if row is not None:
                freq = row[0] + count
                score = self._policy.score(clock, freq, row[1], row[2], self._tick())
                update = "UPDATE units SET freq = ?, score = ? WHERE name = ?"
                self._writer.execute(update, (freq, score, name))

    # Locking, failing.

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One writer at a time, over threads and processes; the kernel frees the lock of a killed one."""
        with self._writing, open(self._folder / "lock", "ab", opener=_opened) as file:
            deadline = time.monotonic() + _LOCK_WAIT_S
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.002)
            yield

    @contextmanager
    def _guarded(self, what: str, index: IndexConnection) -> Iterator[None]:
        """Failures of the disk end here: the caller falls through to its "nothing there" answer."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            anew = isinstance(error, sqlite3.Error) and wants_new_index(error)
            self._failed(what, error, 0.0 if anew else _PAUSE_S)
            if anew:
                self._reset(index.path)

    def _failed(self, what: str, error: Exception, pause_s: float | None = None) -> None:
        self.num_errors += 1
        self._paused_until = time.monotonic() + (_PAUSE_S if pause_s is None else pause_s)
        LOGGER.warning("cache folder %s: cannot %s (%s); going on without it", self._folder, what, error)

    def _clean(self) -> None:
        """Drops rows without a valid file, files without a row and half-written files."""
        with self._exclusive():
            rows = self._writer.execute("SELECT name, bytes FROM units").fetchall()
            # Whatever else lies there is not the cache's to remove.
            sizes = {
                entry.name: entry.stat().st_size
                for entry in os.scandir(self._files)
                if ENTRY_NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
            }
            valid = {f"{name}.safetensors" for name, size in rows if sizes.get(f"{name}.safetensors") == size}
            for name, _ in rows:
                if f"{name}.safetensors" not in valid:
                    self._remove(self._writer, name)
            for file in sizes.keys() - valid:
                (self._files / file).unlink(missing_ok=True)
            self._writer.execute(f"DELETE FROM leases WHERE {_OVER}", (time.monotonic(), f"{self._boot}/"))

    def _reset(self, unusable: Path) -> None:
        """Begins a new index; the files of the old one become orphans and go."""
        try:
            with self._exclusive():
                begin_anew(self._folder, unusable)
            self._clean()
        except (OSError, sqlite3.Error) as error:
            self._failed("begin a new index", error)


def _opened(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _sum(index: IndexConnection, where: str, *values: str) -> int:
    query = f"SELECT COALESCE(SUM(bytes), 0) FROM units {where}"
    return int(index.execute(query, values).fetchone()[0])


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
