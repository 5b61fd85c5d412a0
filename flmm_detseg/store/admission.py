"""Which backgrounds are worth storing: seen before, and not too many per second."""

from __future__ import annotations

import time
from collections import OrderedDict, deque

import numpy as np

from flmm_detseg.store.tile_index import Record


class GhostList:
    """What was seen but not stored: a background is worth storing when an earlier image showed it too.

    Images are remembered by their tile hashes, not by the name of one detector's cut: boxes jitter, and with them
    every name.

    Args:
        depth: Images remembered per bucket.
        max_images: Images remembered in all; buckets that have been silent for longest lose theirs first.
    """

    def __init__(self, depth: int, max_images: int = 8192) -> None:
        self._depth, self._max = depth, max_images
        self._images: OrderedDict[str, deque[np.ndarray]] = OrderedDict()
        self._num_images = 0
        self._names: OrderedDict[str, None] = OrderedDict()

    def push_image(self, bucket: str, hashes: np.ndarray) -> None:
        """An image (``[N]`` uint64 hashes) found no stored background."""
        images = self._images.setdefault(bucket, deque())
        self._images.move_to_end(bucket)
        images.append(hashes)
        self._num_images += 1
        if len(images) > self._depth:
            images.popleft()
            self._num_images -= 1
        while self._num_images > self._max:
            silent = next(iter(self._images))
            self._images[silent].popleft()
            self._num_images -= 1
            if not self._images[silent]:
                del self._images[silent]

    def knows(self, record: Record, hashes: np.ndarray) -> bool:
        """As :meth:`admits`, but nothing is remembered."""
        if record.entry_id in self._names:
            return True
        images = self._images.get(record.bucket, ())
        # The image that shows it now is one of them.
        return sum(np.array_equal(image[record.indices], hashes) for image in images) >= 2

    def admits(self, record: Record, hashes: np.ndarray) -> bool:
        """Whether a background was seen before the image that shows it now; remembers it when not.

        Args:
            record: The candidate.
            hashes: ``[n]`` uint64 of its mask tiles.

        Returns:
            True: it was seen before.
        """
        if self.knows(record, hashes):
            self._names.pop(record.entry_id, None)
            return True
        self._names[record.entry_id] = None
        while len(self._names) > 64 * self._depth:
            self._names.popitem(last=False)
        return False


class RateLimit:
    """Token bucket per tenant; a burst of two seconds is allowed. Not thread-safe: the cache holds a lock.

    Args:
        per_s: Insertions per second; None: any number.
    """

    def __init__(self, per_s: float | None) -> None:
        self._per_s = per_s
        self._state: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allows(self, tenant: str) -> bool:
        """Takes one token of the bucket, if there is one."""
        if self._per_s is None:
            return True
        burst, now = max(1.0, 2 * self._per_s), time.monotonic()
        tokens, since = self._state.get(tenant, (burst, now))
        tokens = min(burst, tokens + (now - since) * self._per_s)
        allowed = tokens >= 1
        self._state[tenant] = (tokens - allowed, now)
        self._state.move_to_end(tenant)
        if len(self._state) > 4096:
            self._state.popitem(last=False)
        return allowed


class StaticStreams:
    """Streams declared static. Every request declares its stream again, so a stream in use is never forgotten for long.

    Args:
        max_streams: Streams remembered; the one declared least recently is forgotten.
    """

    def __init__(self, max_streams: int = 4096) -> None:
        self._max = max_streams
        self._streams: OrderedDict[tuple[str, str], None] = OrderedDict()

    def add(self, stream: tuple[str, str]) -> None:
        """Declares a stream, ``(scope, session)``."""
        self._streams[stream] = None
        self._streams.move_to_end(stream)
        while len(self._streams) > self._max:
            self._streams.popitem(last=False)

    def __contains__(self, stream: tuple[str, str | None]) -> bool:
        return stream in self._streams
