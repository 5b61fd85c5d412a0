"""Vision features (L1) shared by machines through Redis, Valkey or any server that speaks the protocol.

Keys and values of prefixes are too large for a network (section 4.5 of the reference). Values are signed with the
cache's secret: a server that somebody else writes to can lose values, not forge them.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from flmm_detseg.cache.blob import StoredValue
from flmm_detseg.cache.index import Record, pack_record, unpack_record
from flmm_detseg.cache.keys import FORMAT
from flmm_detseg.errors import ConfigError, MissingDependencyError

LOGGER = logging.getLogger(__name__)
_LOG, _LOG_LENGTH, _BATCH = f"{FORMAT}:log", 20_000, 1000
_TIMEOUT_S, _PAUSE_S = 0.5, 5.0


class RedisTier:
    """Values behind a URL. A server that is slow or away costs one timeout, then nothing for a while.

    Args:
        url: For example ``redis://cache.local:6379/0``.
        ttl_s: Life of a value; the server's own ``maxmemory`` policy may end it sooner.

    Raises:
        MissingDependencyError: The package ``redis`` is not installed.
        ConfigError: The URL is none.
    """

    def __init__(self, url: str, ttl_s: int) -> None:
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
            raise ConfigError(f"redis_url cannot be used: {error}") from error
        self._ttl_s = ttl_s
        self._last = "-"
        self._paused_until = 0.0
        self.num_errors = 0

    def put(self, stored: StoredValue, record: Record, data: bytes) -> bool:
        """Writes a value and tells the other machines; False when the server did not take it."""
        mask, voters, digest = pack_record(record)
        row = {
            "name": stored.name, "entry": record.entry_id, "bucket": record.bucket, "scope": record.scope,
            "rows": record.grid[0], "cols": record.grid[1], "mask": mask, "voters": voters, "digest": digest,
        }  # fmt: skip
        pipeline = self._client.pipeline(transaction=True)
        pipeline.set(_value(stored.name), data, ex=self._ttl_s)
        pipeline.xadd(_LOG, row, maxlen=_LOG_LENGTH, approximate=True)
        return self._call(pipeline.execute) is not None

    def get(self, name: str) -> bytes | None:
        """The value's bytes; None when there is none (any more)."""
        return self._call(lambda: self._client.get(_value(name)))

    def touch(self, name: str) -> None:
        """Uses are not counted: the server has its own policy."""

    def discard(self, name: str) -> None:
        """Removes a value."""
        self._call(lambda: self._client.delete(_value(name)))

    def clear(self, scopes: set[str] | None) -> None:
        """Removes everything of this cache, or what lives under some scopes."""
        for _, fields in self._call(lambda: self._client.xrange(_LOG)) or []:
            if scopes is None or fields[b"scope"].decode() in scopes:
                self.discard(fields[b"name"].decode())

    def poll(self, wait: bool) -> list[tuple[Record, str]]:
        """What was written (by anybody) since the last call: (record without pixels, unit name).

        Args:
            wait: Of no meaning here: a call never waits for longer than the server's timeout.
        """
        found: list[tuple[Record, str]] = []
        while rows := self._call(lambda: self._client.xrange(_LOG, min=self._last, count=_BATCH)):
            self._last = "(" + rows[-1][0].decode()
            for _, fields in rows:
                try:
                    text = {
                        key: fields[key].decode()
                        for key in (b"entry", b"bucket", b"scope", b"digest", b"name")
                    }
                    rows_cols = int(fields[b"rows"]), int(fields[b"cols"])
                    record = unpack_record(
                        text[b"entry"], text[b"bucket"], text[b"scope"], *rows_cols, fields[b"mask"],
                        fields[b"voters"], text[b"digest"],
                    )  # fmt: skip
                    found.append((record, text[b"name"]))
                except (KeyError, ValueError):
                    LOGGER.warning("a row of the Redis log is damaged and left out")
        return found

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def _call(self, call: Any) -> Any:
        if time.monotonic() < self._paused_until:
            return None
        try:
            return call()
        except self._errors as error:
            self.num_errors += 1
            self._paused_until = time.monotonic() + _PAUSE_S
            LOGGER.warning("Redis does not answer (%s); going on without it for %g s", error, _PAUSE_S)
            return None


def _value(name: str) -> str:
    return f"{FORMAT}:value:{name}"
