"""Vision features (L1) shared by machines through Redis, Valkey or any server that speaks the protocol.

Keys and values of prefixes are too large for a network (section 4.5 of the reference). Values and messages are signed
with the cache's secret: a server that somebody else writes to can lose values, not forge them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from flmm_detseg.errors import ConfigError, MissingDependencyError
from flmm_detseg.store.keys import FORMAT, KeyMaker
from flmm_detseg.store.serialise import StoredValue
from flmm_detseg.store.tile_index import News, Record, pack_record, sign_record, unpack_record

Answer = TypeVar("Answer")

LOGGER = logging.getLogger(__name__)
_LOG_LENGTH, _BATCH = 20_000, 1000
_TIMEOUT_S, _PAUSE_S = 0.5, 5.0


class RedisTier:
    """Values on a server. A slow or unreachable server costs one timeout, then it is left out for a while.

    Caches with another secret may use the same server: their values and messages have other names.

    Args:
        url: For example ``redis://cache.local:6379/0``.
        ttl_s: Life of a value; the server's own ``maxmemory`` policy may end it sooner.
        maker: Signs messages.

    Raises:
        MissingDependencyError: The package ``redis`` is not installed.
        ConfigError: The URL is none.
    """

    def __init__(self, url: str, ttl_s: int, maker: KeyMaker) -> None:
        try:
            import redis
        except ImportError as error:
            raise MissingDependencyError(
                "redis_url is set, but the package 'redis' is not installed: pip install redis"
            ) from error
        self._errors = (redis.RedisError, OSError)
        try:
            self._client: Any = redis.Redis.from_url(
                url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S
            )
        except ValueError as error:
            # Without the URL: it may carry a password.
            raise ConfigError(f"redis_url cannot be used ({error}): give redis://HOST:PORT/NUMBER") from error
        self._ttl_s, self._maker = ttl_s, maker
        self._prefix = f"{FORMAT}:{maker.digest('redis')[:12]}"
        self._last: str | None = None
        # What this process has read, in the order of expiry: when (monotonic clock); bucket, entry and scope.
        self._known: OrderedDict[str, tuple[float, tuple[str, str, str]]] = OrderedDict()
        self._known_lock = threading.Lock()
        self._own_clears: set[str] = set()
        self._paused_until = 0.0
        self.num_errors = 0

    def put(self, stored: StoredValue, record: Record, data: bytes) -> bool:
        """Writes a value and tells the other machines; False when the server did not take it."""
        mask, voters, digest = pack_record(record)
        row = {
            "name": stored.name, "entry": record.entry_id, "bucket": record.bucket, "scope": record.scope,
            "rows": record.grid[0], "cols": record.grid[1], "mask": mask, "voters": voters, "digest": digest,
            "signature": sign_record(self._maker, stored.name, record),
        }  # fmt: skip
        self._learn(stored.name, record)
        pipeline = self._client.pipeline(transaction=True)
        pipeline.set(self._value(record.scope, stored.name), data, px=int(1000 * self._ttl_s))
        pipeline.xadd(self._log, row, maxlen=_LOG_LENGTH, approximate=True)
        return self._call(pipeline.execute) is not None

    def get(self, name: str) -> bytes | None:
        """The value's bytes; None when there is none (any more)."""
        known = self._known.get(name)
        if known is None:
            return None
        data: bytes | None = self._call(lambda: self._client.get(self._value(known[1][2], name)))
        return data

    def touch(self, name: str) -> None:
        """Uses are not counted: the server has its own policy."""

    def discard(self, name: str) -> None:
        """Removes a value."""
        known = self._known.get(name)
        if known is not None:
            self._call(lambda: self._client.delete(self._value(known[1][2], name)))

    @property
    def paused(self) -> bool:
        """Whether the server did not answer a short while ago."""
        return time.monotonic() < self._paused_until

    def clear(self, scopes: set[str] | None) -> bool:
        """Removes everything of this cache, or what lives under some scopes; other machines learn it.

        Args:
            scopes: Hashes of tenant and vision fingerprint; None clears everything.

        Returns:
            False when the server did not answer: something may be left.
        """
        # Also when it did not answer just now: a request can wait, a clear must be tried.
        self._paused_until, done = 0.0, True
        for scope in {""} if scopes is None else scopes:
            message = {"clear": scope, "signature": self._maker.digest("clear", scope)}
            added: bytes | None = self._call(
                partial(self._client.xadd, self._log, message, maxlen=_LOG_LENGTH, approximate=True)
            )
            if added is not None:
                self._own_clears.add(added.decode())
            # By their names, not by the log: values live on when their messages are trimmed.
            pattern = self._value(scope or "*", "*")
            removed = self._call(partial(self._remove, pattern))
            done = done and added is not None and removed is not None
        return done

    def _remove(self, pattern: str) -> bool:
        for names in _batches(self._client.scan_iter(match=pattern, count=_BATCH)):
            self._client.delete(*names)
        return True

    def poll(self) -> News:
        """What was written or cleared (by anybody) since the last call, and which values have expired."""
        news, first = News(gone=self._expired()), self._last is None
        while True:
            rows = self._call(lambda: self._client.xrange(self._log, min=self._last or "-", count=_BATCH))
            if rows is not None:
                self._last = "(" + rows[-1][0].decode() if rows else self._last or "-"
            for number, fields in rows or []:
                try:
                    self._read(number.decode(), fields, news)
                except (KeyError, ValueError, TypeError):
                    LOGGER.warning("a row of the Redis log is damaged or forged and left out")
            if not rows:
                break
        if first:
            # What was cleared before this process started does not matter to it.
            news.cleared = []
        for record, name in news.records:
            self._learn(name, record)
        return news

    def _read(self, number: str, fields: dict[bytes, bytes], news: News) -> None:
        if b"clear" in fields:
            scope = fields[b"clear"].decode()
            if fields[b"signature"].decode() != self._maker.digest("clear", scope):
                raise ValueError("the signature does not fit")
            if number in self._own_clears:
                self._own_clears.discard(number)
            else:
                news.cleared.append(scope or None)
            news.records = [item for item in news.records if scope and item[0].scope != scope]
            return
        name, entry, bucket, scope, digest, signature = (
            fields[key].decode() for key in (b"name", b"entry", b"bucket", b"scope", b"digest", b"signature")
        )
        record = unpack_record(
            self._maker, name, entry, bucket, scope, int(fields[b"rows"]), int(fields[b"cols"]), fields[b"mask"],
            fields[b"voters"], digest, signature,
        )  # fmt: skip
        news.records.append((record, name))

    def _learn(self, name: str, record: Record) -> None:
        with self._known_lock:
            self._known[name] = (time.monotonic(), (record.bucket, record.entry_id, record.scope))
            self._known.move_to_end(name)

    def _expired(self) -> list[tuple[str, str, str]]:
        gone = []
        with self._known_lock:
            while self._known:
                name, (since, (bucket, entry, _)) = next(iter(self._known.items()))
                if time.monotonic() - since <= self._ttl_s:
                    break
                del self._known[name]
                gone.append((bucket, entry, name))
        return gone

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def _call(self, call: Callable[[], Answer]) -> Answer | None:
        if self.paused:
            return None
        try:
            return call()
        except self._errors as error:
            self.num_errors += 1
            self._paused_until = time.monotonic() + _PAUSE_S
            LOGGER.warning("Redis does not answer (%s); going on without it for %g s", error, _PAUSE_S)
            return None

    @property
    def _log(self) -> str:
        return f"{self._prefix}:log"

    def _value(self, scope: str, name: str) -> str:
        return f"{self._prefix}:value:{scope}:{name}"


def _batches(names: Iterable[bytes]) -> Iterator[list[bytes]]:
    iterator = iter(names)
    while batch := list(islice(iterator, _BATCH)):
        yield batch
