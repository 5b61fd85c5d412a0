from __future__ import annotations

import ctypes

from flmm_detseg.utils import memory


def test_memory_is_given_back_where_the_library_can(monkeypatch):
    asked = []

    class Library:
        def __init__(self, name: None) -> None:
            self.malloc_trim = asked.append

    memory._trim.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", Library)
    memory.give_back_memory()
    assert asked == [0]
    memory._trim.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())  # another C library
    memory.give_back_memory()
    memory._trim.cache_clear()
