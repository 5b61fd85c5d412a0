"""Single flight: of several requests that need the same value at once, one computes it and the others wait."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_POLL_S, _MAX_NAMES = 0.02, 1024


@dataclass(frozen=True)
class Flight:
    """Whether the caller computes the value itself.

    Attributes:
        leader: True: compute the value and insert it. False: another one did; match again, and compute only when
            there is still nothing.
    """

    leader: bool


class _Landing:
    """Where the threads of one process wait for their leader."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.succeeded = False


class SingleFlight:
    """One computation per name, over threads and (with a lease) over processes.

    Args:
        acquire: Takes a lease over processes: ``name -> bool``; None: there is one process.
        release: Gives it back.
        timeout_s: Longest wait; after it the waiting one computes for itself.
        renew: Extends a lease; called while the computation runs. None: leases do not run out.
        renew_s: Seconds between two calls of it.
    """

    def __init__(
        self,
        acquire: Callable[[str], bool] | None,
        release: Callable[[str], None] | None,
        timeout_s: float,
        renew: Callable[[str], None] | None = None,
        renew_s: float = 10.0,
    ) -> None:
        self._acquire, self._release, self._timeout = acquire, release, timeout_s
        self._renew, self._renew_s = renew, renew_s
        self._lock = threading.Lock()
        self._landings: dict[str, _Landing] = {}
        # Names that were computed lately: who matched before that and enters after it has to match again.
        self._computed: OrderedDict[str, None] = OrderedDict()

    @contextmanager
    def enter(self, name: str) -> Iterator[Flight]:
        """Waits while another one computes ``name``, or makes the caller the one who does.

        When a leader fails (an exception leaves its block), one of those who waited leads.
        """
        deadline = time.monotonic() + self._timeout
        while True:
            with self._lock:
                landing = self._landings.get(name)
                if landing is None:
                    landing = self._landings[name] = _Landing()
                    break
            if not landing.done.wait(max(0.0, deadline - time.monotonic())):
                yield Flight(leader=True)
                return
            if landing.succeeded:
                yield Flight(leader=False)
                return
        leased = False
        try:
            leased, waited = self._lease(name, deadline)
            with self._renewed(name if leased else None):
                yield Flight(leader=not (leased and waited) and name not in self._computed)
            landing.succeeded = True
        finally:
            if leased and self._release is not None:
                self._release(name)
            with self._lock:
                del self._landings[name]
                if landing.succeeded:
                    self._computed[name] = None
                    self._computed.move_to_end(name)
                    if len(self._computed) > _MAX_NAMES:
                        self._computed.popitem(last=False)
            landing.done.set()

    @contextmanager
    def _renewed(self, name: str | None) -> Iterator[None]:
        """Renews a lease until the context is left: it runs out only when this process dies."""
        renew = self._renew
        if name is None or renew is None:
            yield
            return
        done = threading.Event()

        def work() -> None:
            while not done.wait(self._renew_s):
                renew(name)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            # A renewal that is under way must not come after the release.
            thread.join()

    def _lease(self, name: str, deadline: float) -> tuple[bool, bool]:
        """Whether the lease over processes was got, and whether another process had it before."""
        waited = False
        while self._acquire is not None:
            if self._acquire(name):
                return True, waited
            waited = True
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL_S)
        return False, waited
