"""All users of an app: bounded in number, in bytes and in time."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from flmm_detseg.app.limits import Limits
from flmm_detseg.app.user import User
from flmm_detseg.errors import DataError


class Users:
    """Finds a user by the browser's session, or by the secret in an address.

    Args:
        make: Makes a new user.
        limits: How many there may be, how large, and how long.
        clock: Seconds; for tests.
    """

    def __init__(
        self, make: Callable[[], User], limits: Limits, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._make = make
        self._limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        # Session -> user, the one that was seen last at the end.
        self._users: OrderedDict[str, User] = OrderedDict()
        self.forgotten = 0

    def __len__(self) -> int:
        """Users that are kept now."""
        return len(self._users)

    def get(self, session: str | None) -> User:
        """The user of a session; a new one where there is none.

        Args:
            session: The browser's, or a client's.

        Returns:
            The user, who counts as seen now.

        Raises:
            DataError: There is no session.
        """
        if not session:
            raise DataError("the request has no session; open the page, or use a client that keeps one")
        with self._lock:
            user = self._users.pop(session, None) or self._make()
            user.seen = self._clock()
            self._users[session] = user
            self._trim()
            return user

    def by_token(self, token: str) -> User | None:
        """The user whose pictures an address names; None where there is none (any more)."""
        with self._lock:
            return next((user for user in self._users.values() if user.token == token), None)

    def forget(self, session: str | None) -> None:
        """The page of a session was closed."""
        with self._lock:
            if self._users.pop(session or "", None) is not None:
                self.forgotten += 1

    def trim(self) -> None:
        """Forgets users that are idle, and those that are too many or too large together.

        Of the latter the one that was seen last stays, however large.
        """
        with self._lock:
            self._trim()

    def _trim(self) -> None:
        now = self._clock()
        while self._users:
            eldest = next(iter(self._users.values()))
            idle = now - eldest.seen > self._limits.idle_seconds
            many = len(self._users) > self._limits.users
            large = sum(user.num_bytes for user in self._users.values()) > self._limits.user_bytes
            if not (idle or (len(self._users) > 1 and (many or large))):
                return
            self._users.popitem(last=False)
            self.forgotten += 1
