"""Users are bounded in number, in bytes and in time, and known by their session or their token alone."""

from __future__ import annotations

import pytest

from flmm_detseg.app.limits import Limits
from flmm_detseg.app.users import Users
from flmm_detseg.errors import DataError


class Someone:
    def __init__(self) -> None:
        Someone.count = getattr(Someone, "count", 0) + 1
        self.token = f"secret-{Someone.count}"
        self.seen = 0.0
        self.num_bytes = 10


def users(**limits: float) -> tuple[Users, list[float]]:
    clock = [0.0]
    return Users(Someone, Limits(**limits), clock=lambda: clock[0]), clock  # type: ignore[arg-type]


def test_a_session_has_one_user_and_a_token_finds_it():
    found, _ = users()
    first, second = found.get("a"), found.get("b")
    assert first is not second
    assert found.get("a") is first
    assert found.by_token(second.token) is second
    assert found.by_token("other") is None
    assert found.by_token("") is None
    found.forget("a")
    assert found.by_token(first.token) is None
    assert len(found) == 1
    found.forget(None)
    for session in (None, ""):
        with pytest.raises(DataError, match="no session"):
            found.get(session)


def test_the_one_idle_longest_is_forgotten_when_there_are_too_many():
    found, _ = users(users=2)
    first, second = found.get("a"), found.get("b")
    found.get("a")
    found.get("c")
    assert found.by_token(second.token) is None
    assert found.by_token(first.token) is first
    assert (len(found), found.forgotten) == (2, 1)


def test_idle_users_are_forgotten():
    found, clock = users(idle_seconds=100)
    found.get("a")
    clock[0] = 50
    found.get("b")
    clock[0] = 120
    found.trim()
    assert len(found) == 1
    clock[0] = 151
    found.trim()
    assert (len(found), found.forgotten) == (0, 2)
    found.trim()


def test_a_user_who_comes_again_is_not_idle():
    found, clock = users(idle_seconds=100)
    first = found.get("a")
    for now in (60, 120, 180):
        clock[0] = now
        assert found.get("a") is first
    assert found.forgotten == 0


def test_large_users_are_forgotten_but_not_the_last_one():
    found, _ = users(user_bytes=25)
    for session in "abc":
        found.get(session)
    assert len(found) == 2
    found.get("c").num_bytes = 100
    found.trim()
    assert len(found) == 1
    assert found.get("c").num_bytes == 100
