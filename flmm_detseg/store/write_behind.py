"""A thread that writes, so that requests need not wait for the disk."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

LOGGER = logging.getLogger(__name__)
Item = TypeVar("Item")


class WriteBehind(Generic[Item]):
    """Calls a function with each item, one after the other, in a thread of its own. Thread-safe.

    Args:
        room: Items that wait at most.
        write: Called with each of them.
        failed: Called when that raised.
    """

    def __init__(self, room: int, write: Callable[[Item], object], failed: Callable[[], object]) -> None:
        self._write, self._failed = write, failed
        self._waiting: queue.Queue[Item | None] = queue.Queue(room)
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, item: Item) -> bool:
        """Leaves an item to the thread; False when there is no room, or it was closed."""
        with self._lock:
            if self._closed:
                return False
            try:
                self._waiting.put_nowait(item)
            except queue.Full:
                return False
        return True

    def flush(self) -> None:
        """Waits until everything that was put is written."""
        with self._lock:
            closed = self._closed
        if closed:
            self._thread.join()
        else:
            self._waiting.join()

    def close(self) -> None:
        """Writes what waits and ends the thread; further calls wait for that, too."""
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed:
            # Nothing can follow it in the queue.
            self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            try:
                self._write(item)
            except Exception:
                # A tier answers for its own failures; whatever else it is must not end the thread.
                self._failed()
                LOGGER.exception("a background could not be written")
            finally:
                self._waiting.task_done()
        self._waiting.task_done()
