"""Values on disk: one file each, an SQLite index beside them; survives kill -9, full disks and several processes.

Order of a write: temporary file -> fsync -> rename -> fsync of the folder -> row. A file without a row, or a row
without its file, is what a crash can leave; both are dropped at the next start. Writers take turns (``flock``),
readers never wait. Not for network file systems: SQLite's write-ahead log and ``flock`` need one machine.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import sqlite3
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flmm_detseg.cache.blob import StoredValue
from flmm_detseg.cache.evict import EvictionPolicy
from flmm_detseg.cache.index import Record, pack_record, unpack_record
from flmm_detseg.errors import ConfigError

LOGGER = logging.getLogger(__name__)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS units (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE NOT NULL, level TEXT NOT NULL, tenant TEXT NOT NULL,
    scope TEXT NOT NULL, bucket TEXT NOT NULL, entry TEXT NOT NULL, rows INTEGER NOT NULL, cols INTEGER NOT NULL,
    mask BLOB NOT NULL, voters BLOB NOT NULL, digest TEXT NOT NULL, bytes INTEGER NOT NULL, saved_ms REAL NOT NULL,
    freq INTEGER NOT NULL, score REAL NOT NULL);
CREATE INDEX IF NOT EXISTS by_score ON units (level DESC, score);
CREATE INDEX IF NOT EXISTS by_tenant ON units (tenant, bytes);
CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value REAL NOT NULL);
CREATE TABLE IF NOT EXISTS leases (name TEXT PRIMARY KEY, owner TEXT NOT NULL, expires REAL NOT NULL);
"""
_LOCK_WAIT_S, _PAUSE_S = 5.0, 10.0


def folder_secret(folder: Path) -> bytes:
    """The folder's own secret: made by the first process, the same for all that come after it.

    Raises:
        ConfigError: The folder cannot be written.
    """
    path = folder / "secret"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for _ in range(2):
            if path.exists():
                if len(found := path.read_bytes()) == 32:
                    return found
                path.unlink(missing_ok=True)
            fresh = folder / f"secret.{uuid.uuid4().hex}"
            fresh.touch(mode=0o600)
            fresh.write_bytes(secrets.token_bytes(32))
            try:
                # Fails where another process was first: nobody ever sees half a secret.
                os.link(fresh, path)
            except FileExistsError:
                continue
            finally:
                fresh.unlink()
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"the cache folder {folder} cannot be used ({error}): give a writable local folder"
        ) from error


class DiskTier:
    """Values in one folder, shared by any number of processes of one machine. Thread-safe.

    Args:
        folder: Created when absent.
        budget: Bytes of all files.
        policy: Order of eviction within a level (L2 goes first).
        tenant_budget: Bytes one tenant may hold; its own files make room. None: no limit.
    """

    def __init__(
        self, folder: Path, budget: int, policy: EvictionPolicy, tenant_budget: int | None = None
    ) -> None:
        self._folder, self._files = folder, folder / "entries"
        self._budget, self._policy = budget, policy
        self._tenant_budget = budget if tenant_budget is None else min(budget, tenant_budget)
        self._owner = f"{os.getpid()}-{uuid.uuid4().hex}"
        self._mutex = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._index = folder / "index-0.sqlite"
        self._last_seq = 0
        self._paused_until = 0.0
        # Its own lock: requests must not wait for a write.
        self._used_lock = threading.Lock()
        self._used: Counter[str] = Counter()
        self._num_bytes = 0
        self.num_errors = 0
        self.num_evicted = 0
        try:
            self._files.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigError(f"the cache folder {folder} cannot be used ({error})") from error
        with self._guarded("open"):
            self._clean()

    # What requests call.

    def put(self, stored: StoredValue, record: Record, data: bytes) -> bool:
        """Writes a value; False when it did not fit or could not be written (the request goes on all the same)."""
        if len(data) > self._tenant_budget or time.monotonic() < self._paused_until:
            return False
        path, temporary = self._path(stored.name), self._files / f"{stored.name}.{uuid.uuid4().hex}.tmp"
        with self._guarded("write"):
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
                    # A full disk may still take the removal; what stays behind is an orphan of the next start.
                    temporary.unlink(missing_ok=True)
                    path.unlink(missing_ok=True)
                    raise
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
        """Counts a use, also one that memory served; written down with the next write."""
        with self._used_lock:
            self._used[name] += 1

    def discard(self, name: str) -> None:
        """Removes a value (damaged, or not wanted any more)."""
        with self._guarded("remove"), self._mutex:
            self._remove(name)

    def clear(self, scopes: set[str] | None) -> None:
        """Removes everything, or what lives under some scopes."""
        with self._guarded("clear"), self._exclusive():
            rows = self._connection().execute("SELECT name, scope FROM units").fetchall()
            for name, scope in rows:
                if scopes is None or scope in scopes:
                    self._remove(name)

    def poll(self, wait: bool) -> list[tuple[Record, str]]:
        """Rows that this process has not seen yet: (record without pixels, unit name).

        Args:
            wait: Also while a thread of this process writes; else that is for the next call.
        """
        found: list[tuple[Record, str]] = []
        if not self._mutex.acquire(blocking=wait):
            return found
        try:
            self._read_rows(found)
        finally:
            self._mutex.release()
        return found

    def _read_rows(self, found: list[tuple[Record, str]]) -> None:
        with self._guarded("poll"):
            columns = "seq, name, entry, bucket, scope, rows, cols, mask, voters, digest"
            query = f"SELECT {columns} FROM units WHERE seq > ? ORDER BY seq"
            rows = self._connection().execute(query, (self._last_seq,)).fetchall()
            for seq, name, *fields in rows:
                self._last_seq = seq
                try:
                    found.append((unpack_record(*fields), name))
                except (ValueError, TypeError):
                    # A damaged row; its file goes too.
                    self._remove(name)

    def acquire(self, name: str, ttl_s: float) -> bool:
        """Takes the lease of a computation; True for its only holder (or when no lease can be written)."""
        with self._guarded("lease"), self._mutex:
            now = time.time()
            cursor = self._connection().execute(
                "INSERT INTO leases VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, "
                "expires = excluded.expires WHERE leases.expires < ?",
                (name, self._owner, now + ttl_s, now),
            )
            return cursor.rowcount == 1
        return True

    def release(self, name: str) -> None:
        """Gives the lease back."""
        with self._guarded("lease"), self._mutex:
            self._connection().execute("DELETE FROM leases WHERE name = ? AND owner = ?", (name, self._owner))

    @property
    def num_bytes(self) -> int:
        """Bytes of all files; while a thread of this process writes, those before it began."""
        if self._mutex.acquire(blocking=False):
            try:
                with self._guarded("count"):
                    self._num_bytes = self._sum("")
            finally:
                self._mutex.release()
        return self._num_bytes

    def close(self) -> None:
        """Closes the index."""
        with self._mutex:
            if self._db is not None:
                self._db.close()
                self._db = None

    # Rows and files.

    def _path(self, name: str) -> Path:
        return self._files / f"{name}.safetensors"

    def _remove(self, name: str) -> None:
        self._connection().execute("DELETE FROM units WHERE name = ?", (name,))
        self._path(name).unlink(missing_ok=True)

    def _has(self, name: str) -> bool:
        row = self._connection().execute("SELECT bytes FROM units WHERE name = ?", (name,)).fetchone()
        try:
            return row is not None and self._path(name).stat().st_size == row[0]
        except FileNotFoundError:
            return False

    def _sum(self, where: str, *values: str) -> int:
        query = f"SELECT COALESCE(SUM(bytes), 0) FROM units {where}"
        return int(self._connection().execute(query, values).fetchone()[0])

    def _insert_row(self, stored: StoredValue, record: Record, num_bytes: int) -> None:
        score = self._policy.score(self._clock(), 1, stored.saved_ms, num_bytes, time.time())
        self._connection().execute(
            "INSERT OR REPLACE INTO units (name, level, tenant, scope, bucket, entry, rows, cols, mask, voters, "
            "digest, bytes, saved_ms, freq, score) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, ?)",
            (stored.name, stored.level, stored.tenant, stored.scope, stored.bucket, stored.key.entry_id,
             *record.grid, *pack_record(record), num_bytes, stored.saved_ms, score),
        )  # fmt: skip

    def _clock(self) -> float:
        row = self._connection().execute("SELECT value FROM state WHERE name = 'clock'").fetchone()
        return row[0] if row else 0.0

    def _make_room(self, num_bytes: int, tenant: str) -> None:
        self._flush_uses()
        self._evict(self._sum("WHERE tenant = ?", tenant) + num_bytes - self._tenant_budget, tenant)
        self._evict(self._sum("") + num_bytes - self._budget, None)

    def _evict(self, wanted: int, tenant: str | None) -> None:
        while wanted > 0:
            # "L2" sorts behind "L1", so L2 is first here.
            row = self._connection().execute(
                "SELECT name, bytes, score FROM units WHERE tenant = ? OR ? IS NULL ORDER BY level DESC, score LIMIT 1",
                (tenant, tenant),
            ).fetchone()  # fmt: skip
            if row is None:
                return
            self._remove(row[0])
            clock = max(self._clock(), row[2])
            self._connection().execute("INSERT OR REPLACE INTO state VALUES ('clock', ?)", (clock,))
            wanted -= row[1]
            self.num_evicted += 1

    def _flush_uses(self) -> None:
        with self._used_lock:
            used, self._used = self._used, Counter()
        clock = self._clock()
        for name, count in used.items():
            query = "SELECT freq, saved_ms, bytes FROM units WHERE name = ?"
            row = self._connection().execute(query, (name,)).fetchone()
            if row is not None:
                freq = row[0] + count
                score = self._policy.score(clock, freq, row[1], row[2], time.time())
                update = "UPDATE units SET freq = ?, score = ? WHERE name = ?"
                self._connection().execute(update, (freq, score, name))

    # Opening, locking, failing.

    def _generations(self) -> list[Path]:
        """Index files, the valid one last: a damaged one is followed by one with a higher number."""
        return sorted(self._folder.glob("index-*.sqlite"), key=lambda path: int(path.stem[6:]))

    def _connection(self) -> sqlite3.Connection:
        if self._db is not None and not self._index.exists():
            # Another process found the index damaged and began a new one.
            self.close()
        if self._db is None:
            path = self._index = [self._folder / "index-0.sqlite", *self._generations()][-1]
            # Statements commit one by one: a row is one statement, and a crash between two leaves what _clean mends.
            db = sqlite3.connect(path, timeout=2.0, isolation_level=None, check_same_thread=False)
            try:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = NORMAL")
                if db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                    raise sqlite3.DatabaseError("the index is damaged")
                db.executescript(_SCHEMA)
            except sqlite3.Error:
                db.close()
                raise
            self._db, self._last_seq = db, 0
        return self._db

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One writer at a time, over threads and processes; the kernel frees the lock of a killed one."""
        with self._mutex, (self._folder / "lock").open("ab") as file:
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
    def _guarded(self, what: str) -> Iterator[None]:
        """Failures of the disk end here: the caller falls through to its "nothing there" answer."""
        try:
            yield
        except (OSError, sqlite3.OperationalError) as error:
            self._failed(what, error)
        except sqlite3.DatabaseError as error:
            self._failed(what, error, pause_s=0.0)
            self._reset()

    def _failed(self, what: str, error: Exception, pause_s: float | None = None) -> None:
        self.num_errors += 1
        self._paused_until = time.monotonic() + (_PAUSE_S if pause_s is None else pause_s)
        LOGGER.warning("cache folder %s: cannot %s (%s); going on without it", self._folder, what, error)

    def _clean(self) -> None:
        """Drops rows without a valid file, files without a row and half-written files."""
        with self._exclusive():
            rows = self._connection().execute("SELECT name, bytes FROM units").fetchall()
            sizes = {path.name: path.stat().st_size for path in self._files.iterdir()}
            valid = {f"{name}.safetensors" for name, size in rows if sizes.get(f"{name}.safetensors") == size}
            for name, _ in rows:
                if f"{name}.safetensors" not in valid:
                    self._remove(name)
            for file in sizes.keys() - valid:
                (self._files / file).unlink(missing_ok=True)
            self._connection().execute("DELETE FROM leases WHERE expires < ?", (time.time(),))

    def _reset(self) -> None:
        """Begins a new index; the files of the old one become orphans and go."""
        try:
            with self._exclusive():
                damaged = self._index
                self.close()
                if self._generations()[-1:] == [damaged]:
                    # Under a new name: a process that still has the old one open would delete our write-ahead log.
                    (self._folder / f"index-{int(damaged.stem[6:]) + 1}.sqlite").touch(mode=0o600)
                for suffix in ("", "-wal", "-shm"):
                    damaged.with_name(damaged.name + suffix).unlink(missing_ok=True)
            self._clean()
        except (OSError, sqlite3.Error) as error:
            self._failed("begin a new index", error)


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
