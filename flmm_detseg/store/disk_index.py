"""The SQLite index of a cache folder: how it is opened, and when a new one is begun."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from flmm_detseg.store.keys import KeyMaker
from flmm_detseg.store.tile_index import News, Record, unpack_record

LOGGER = logging.getLogger(__name__)

# Of the tables below. A folder with another number gets a new index; its old files become orphans.
_VERSION = 2
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS units (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE NOT NULL, level TEXT NOT NULL, tenant TEXT NOT NULL,
    scope TEXT NOT NULL, bucket TEXT NOT NULL, entry TEXT NOT NULL, rows INTEGER NOT NULL, cols INTEGER NOT NULL,
    mask BLOB NOT NULL, voters BLOB NOT NULL, digest TEXT NOT NULL, signature TEXT NOT NULL, bytes INTEGER NOT NULL,
    saved_ms REAL NOT NULL, freq INTEGER NOT NULL, score REAL NOT NULL);
CREATE INDEX IF NOT EXISTS by_score ON units (level DESC, score);
CREATE INDEX IF NOT EXISTS by_tenant ON units (tenant, bytes);
CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value REAL NOT NULL);
CREATE TABLE IF NOT EXISTS leases (name TEXT PRIMARY KEY, owner TEXT NOT NULL, expires REAL NOT NULL);
CREATE TABLE IF NOT EXISTS clears (seq INTEGER PRIMARY KEY AUTOINCREMENT, scope TEXT UNIQUE NOT NULL);
CREATE TRIGGER IF NOT EXISTS count_removed AFTER DELETE ON units BEGIN
    INSERT OR REPLACE INTO state
        SELECT 'removed', COALESCE((SELECT value FROM state WHERE name = 'removed'), 0) + 1;
END;
PRAGMA user_version = {_VERSION};
COMMIT;
"""
# Pages of 4 KiB.
_LARGE_LOG = 10_000
# Between two looks for names that are gone: a look reads all of them.
_SWEEP_S = 5.0
INDEX_NAME = re.compile(r"index-(\d+)\.sqlite")
_UNREADABLE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class UnusableIndexError(sqlite3.DatabaseError):
    """The index is damaged, or of another version of this package."""


def wants_new_index(error: sqlite3.Error) -> bool:
    """Whether no statement can ever succeed on that file again; everything else may pass, or is our mistake."""
    if isinstance(error, UnusableIndexError):
        return True
    # Extended codes keep the primary one in the low byte.
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _UNREADABLE


_COLUMNS = "name, entry, bucket, scope, rows, cols, mask, voters, digest, signature"


@contextmanager
def _looking(path: Path) -> Iterator[sqlite3.Connection]:
    """An index that is read only: it may be somebody else's file."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=2.0)) as index:
        index.text_factory = lambda data: data.decode("utf-8", "replace")
        yield index


def is_index(path: Path) -> bool | None:
    """Whether a file is an index of a cache (of any version); None: no readable database, or an empty one."""
    try:
        with _looking(path) as index:
            tables = {
                name for (name,) in index.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            }
    except sqlite3.Error:
        return None
    return {"units", "state", "leases"} <= tables if tables else None


def signed_by(maker: KeyMaker, path: Path) -> bool | None:
    """Whether rows of an index were signed with a secret; None when there is none, or none can be read."""
    try:
        with _looking(path) as index:
            rows = index.execute(f"SELECT {_COLUMNS} FROM units ORDER BY seq DESC LIMIT 100").fetchall()
    except sqlite3.Error:
        return None
    for row in rows:
        try:
            unpack_record(maker, *row)
        except (ValueError, TypeError):
            continue
        return True
    return False if rows else None


def has_rows(path: Path) -> bool:
    """Whether an index that can be read has any."""
    try:
        with _looking(path) as index:
            return index.execute("SELECT 1 FROM units").fetchone() is not None
    except sqlite3.Error:
        return False


def generations(folder: Path) -> list[Path]:
    """Index files, the valid one last: one that cannot be used is followed by one with a higher number."""
    numbered = [
        (int(found[1]), path) for path in folder.iterdir() if (found := INDEX_NAME.fullmatch(path.name))
    ]
    return [path for _, path in sorted(numbered)]


def begin_anew(folder: Path, unusable: Path) -> None:
    """Makes the next generation, unless another process did already. The caller has the folder's lock."""
    if generations(folder)[-1:] == [unusable]:
        # Under a new name: a process that still has the old one open would delete our write-ahead log.
        number = int(unusable.stem.removeprefix("index-")) + 1
        (folder / f"index-{number}.sqlite").touch(mode=0o600)
    for suffix in ("", "-wal", "-shm"):
        unusable.with_name(unusable.name + suffix).unlink(missing_ok=True)


class IndexConnection:
    """A connection to the newest index of a folder. Not thread-safe: its owner holds a lock.

    Args:
        folder: Of the cache.
        maintains: It also checks the file when it opens it, and moves the write-ahead log into it (with an fsync) as
            soon as SQLite does by itself.

    Attributes:
        path: Of the index that is open or was tried last.
    """

    def __init__(self, folder: Path, maintains: bool) -> None:
        self._folder, self._maintains = folder, maintains
        self.path = folder / "index-0.sqlite"
        self._db: sqlite3.Connection | None = None

    def execute(self, query: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        """Runs a statement, opening the index when need be. It commits by itself."""
        if self._db is not None and not self.path.exists():
            # Another connection found the index unusable and began a new one.
            self.close()
        if self._db is None:
            self.path = [self._folder / "index-0.sqlite", *generations(self._folder)][-1]
            self._db = self._open()
        return self._db.execute(query, values)

    def close(self) -> None:
        """Closes the index."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def _open(self) -> sqlite3.Connection:
        # Statements commit one by one: a row is one statement, and a crash between two leaves what the tier's start
        # mends.
        # SQLite would make it readable for all; its log files get the same rights.
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
        db = sqlite3.connect(self.path, timeout=2.0, isolation_level=None, check_same_thread=False)
        # A flipped byte must not make a whole query fail: bytes that are no text have no valid signature either.
        db.text_factory = lambda data: data.decode("utf-8", "replace")
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            if not self._maintains:
                # Only on connections that write little: leases fill the log, too.
                db.execute(f"PRAGMA wal_autocheckpoint = {_LARGE_LOG}")
            elif db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise UnusableIndexError("the index is damaged")
            if db.execute("SELECT 1 FROM sqlite_master").fetchone() is None:
                # Several processes may do this at once.
                db.executescript(_SCHEMA)
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version != _VERSION:
                raise UnusableIndexError(f"it has version {version}, wanted {_VERSION}")
        except sqlite3.Error:
            db.close()
            raise
        return db


def announce_clear(index: IndexConnection, scope: str) -> int | None:
    """Tells other processes that a scope (``""``: everything) was cleared.

    Args:
        index: The shared index.
        scope: Hash of tenant and vision fingerprint.

    Returns:
        Number of the message.
    """
    return index.execute("INSERT OR REPLACE INTO clears (scope) VALUES (?)", (scope,)).lastrowid


class IndexReader:
    """Reads what is new in an index. Not thread-safe: its owner holds a lock.

    Args:
        index: Where to read.
        maker: Checks the rows' signatures.
        unlink: Removes the file of a damaged row.

    Attributes:
        own_clears: Numbers of this process' own messages, which are no news.
    """

    def __init__(self, index: IndexConnection, maker: KeyMaker, unlink: Callable[[str], None]) -> None:
        self._index, self._maker, self._unlink = index, maker, unlink
        self.own_clears: set[int | None] = set()
        self._path: Path | None = None
        self._last_row = self._last_clear = 0
        self._removed, self._next_sweep = 0.0, 0.0
        # Bucket and entry of the names that were handed out or written.
        self._known: dict[str, tuple[str, str]] = {}

    def skip_clears(self) -> None:
        """Skips what was cleared before this process started."""
        (self._last_clear,) = self._index.execute("SELECT COALESCE(MAX(seq), 0) FROM clears").fetchone()
        self._path = self._index.path

    def wrote(self, name: str, record: Record) -> None:
        """This process wrote a row itself; it may be evicted before it is read here."""
        self._known[name] = (record.bucket, record.entry_id)

    def read(self) -> News:
        """Everything since the last call."""
        news = News()
        self._index.execute("SELECT 1")
        if self._path != self._index.path:
            # A new generation: nothing of the old one is there any more.
            news.gone = [(*where, name) for name, where in self._known.items()]
            self._known.clear()
            self.own_clears.clear()
            self._last_row = self._last_clear = 0
            self._path = self._index.path
        last = self._last_clear, self._last_row
        try:
            self._read_clears(news)
            self._read_rows(news)
            self._read_gone(news)
        except (OSError, sqlite3.Error):
            # Nothing of what was read was handed out: it is read again.
            self._last_clear, self._last_row = last
            raise
        return news

    def _read_clears(self, news: News) -> None:
        query = "SELECT seq, scope FROM clears WHERE seq > ? ORDER BY seq"
        for seq, scope in self._index.execute(query, (self._last_clear,)).fetchall():
            self._last_clear = seq
            if seq not in self.own_clears:
                news.cleared.append(scope or None)
            self.own_clears.discard(seq)

    def _read_rows(self, news: News) -> None:
        query = f"SELECT seq, {_COLUMNS} FROM units WHERE seq > ? ORDER BY seq"
        for seq, name, *fields in self._index.execute(query, (self._last_row,)).fetchall():
            self._last_row = seq
            try:
                record = unpack_record(self._maker, name, *fields)
            except (ValueError, TypeError) as error:
                LOGGER.warning("row %s of %s is damaged and dropped (%s)", seq, self._path, error)
                self._index.execute("DELETE FROM units WHERE seq = ?", (seq,))
                self._unlink(str(name))
                continue
            self._known[name] = (record.bucket, record.entry_id)
            news.records.append((record, name))

    def _read_gone(self, news: News) -> None:
        """Names that were handed out and were evicted or removed since, by whomever; not at every call."""
        if time.monotonic() < self._next_sweep:
            return
        row = self._index.execute("SELECT value FROM state WHERE name = 'removed'").fetchone()
        removed = 0 if row is None else row[0]
        if removed == self._removed:
            return
        self._removed, self._next_sweep = removed, time.monotonic() + _SWEEP_S
        present = {name for (name,) in self._index.execute("SELECT name FROM units")}
        # A row written after this query has a number above the last one read: the next call hands it out.
        news.gone += [(*self._known.pop(name), name) for name in self._known.keys() - present]
