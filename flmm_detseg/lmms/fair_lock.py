"""Exclusive use of a model by one thread: its switches (LoRA, attention function, mode) act on all of its users."""

from __future__ import annotations

from collections import deque
from threading import Condition, Lock, get_ident
from weakref import WeakKeyDictionary

from torch import nn

_guard = Lock()
# Beside the modules, not in them: locks can neither be copied nor pickled, and models are.
_locks: WeakKeyDictionary[nn.Module, FairLock] = WeakKeyDictionary()


class FairLock:
    """A re-entrant lock that serves threads in the order of asking; as a context it gives the number of acquisitions.

    Python's own locks are not fair: a thread that decodes would take one again and again, and the others would wait for
    the end of its answer.
    """

    def __init__(self) -> None:
        self._condition = Condition(Lock())
        # The first ticket has the lock, the others wait.
        self._queue: deque[object] = deque()
        self._owner: int | None = None
        self._depth = 0
        self._number = 0

    def __enter__(self) -> int:
        me = get_ident()
        # Only this thread itself makes itself the owner.
        if self._owner != me:
            self._wait(me)
        self._depth += 1
        return self._number

    def _wait(self, me: int) -> None:
        ticket = object()
        with self._condition:
            self._queue.append(ticket)
            try:
                self._condition.wait_for(lambda: self._queue[0] is ticket)
            except BaseException:
                # An interrupt (Ctrl-C): the tickets after this one would never be served.
                self._queue.remove(ticket)
                self._condition.notify_all()
                raise
            self._owner = me
            self._number += 1

    def __exit__(self, *_: object) -> None:
        assert self._owner == get_ident(), "released by another thread than the one that took it"
        self._depth -= 1
        if not self._depth:
            with self._condition:
                self._owner = None
                self._queue.popleft()
                self._condition.notify_all()


def exclusive(model: nn.Module) -> FairLock:
    """A context in which this thread alone computes with a model or switches something of it.

    Requests of the background cache and everything that switches the model for a while (``base_mode``, ``lora_off``) or
    for good (``CachedLMM.train``, ``merge_lora``) use it; it may be nested. Do not block inside it on work that another
    thread does with the model.

    Args:
        model: The transformers model itself (``LMMAdapter.model``), which all adapters around it share.

    Returns:
        The model's lock, the same one for every caller; a context manager.
    """
    with _guard:
        if model not in _locks:
            _locks[model] = FairLock()
        return _locks[model]
