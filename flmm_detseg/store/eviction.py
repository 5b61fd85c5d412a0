"""Eviction: which values to drop when a budget is full. Saved milliseconds per byte (GDSF), and LRU as baseline."""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from mmengine.registry import Registry

from flmm_detseg.errors import ConfigError

Key = TypeVar("Key", bound=Hashable)

EVICTION = Registry("eviction policy", scope="flmm_detseg")


class EvictionPolicy(ABC):
    """Gives every stored value a number; the smallest one is evicted first.

    The number is a pure function, so that the memory tier keeps it in a heap and the disk tier in a column.
    """

    @abstractmethod
    def score(self, clock: float, freq: int, saved_ms: float, num_bytes: int, tick: float) -> float:
        """Worth of keeping a value.

        Args:
            clock: Score of the last value that was evicted (grows; ages those that are not asked for).
            freq: How often the value was used since it was stored, at least 1.
            saved_ms: Milliseconds that one use saves.
            num_bytes: Size of the value.
            tick: Moment of the last use, only its order counts.

        Returns:
            Any number; the value with the least is evicted first.
        """


@EVICTION.register_module(name="gdsf")
class GDSF(EvictionPolicy):
    """Greedy-Dual-Size-Frequency: ``clock + freq * saved_ms / bytes``.

    Source: Cherkasova, "Improving WWW proxies performance with Greedy-Dual-Size-Frequency caching policy" (1998), with
    the measured milliseconds as cost.
    """

    def score(self, clock: float, freq: int, saved_ms: float, num_bytes: int, tick: float) -> float:
        """See :class:`EvictionPolicy`."""
        return clock + freq * saved_ms / max(1, num_bytes)


@EVICTION.register_module(name="lru")
class LRU(EvictionPolicy):
    """Least recently used."""

    def score(self, clock: float, freq: int, saved_ms: float, num_bytes: int, tick: float) -> float:
        """See :class:`EvictionPolicy`."""
        return tick


def build_policy(name: str) -> EvictionPolicy:
    """Builds a registered policy.

    Args:
        name: As registered.

    Returns:
        A new policy.

    Raises:
        ConfigError: Unknown name.
    """
    policy: type[EvictionPolicy] | None = EVICTION.module_dict.get(name)
    if policy is None:
        raise ConfigError(f"eviction policy {name!r} is unknown, there are {sorted(EVICTION.module_dict)}")
    return policy()


@dataclass
class _Item:
    num_bytes: int
    saved_ms: float
    order: int
    freq: int = 1
    score: float = 0.0


class EvictionQueue(Generic[Key]):
    """Values in the order in which they would be evicted. Not thread-safe: its tier holds a lock.

    Args:
        policy: Scores them.
    """

    def __init__(self, policy: EvictionPolicy) -> None:
        self._policy = policy
        self._items: dict[Key, _Item] = {}
        # (score, tick, key); a tuple whose tick is not its item's any more is dead and dropped when it surfaces.
        self._heap: list[tuple[float, int, Key]] = []
        self._clock = 0.0
        self._tick = 0

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: Key) -> bool:
        return key in self._items

    def add(self, key: Key, num_bytes: int, saved_ms: float) -> None:
        """Adds a value, or resets its counts."""
        self._items[key] = _Item(num_bytes, saved_ms, 0)
        self._rescore(key)

    def touch(self, key: Key) -> None:
        """The value was used."""
        self._items[key].freq += 1
        self._rescore(key)

    def remove(self, key: Key) -> None:
        """Forgets a value that was removed, for whatever reason."""
        del self._items[key]

    def evict(self, eligible: Callable[[Key], bool] = lambda key: True) -> Key | None:
        """Removes and returns the eligible value that is worth least; None when there is none."""
        skipped, victim = [], None
        while self._heap and victim is None:
            entry = heapq.heappop(self._heap)
            item = self._items.get(entry[2])
            if item is None or item.order != entry[1]:
                continue
            if not eligible(entry[2]):
                skipped.append(entry)
                continue
            victim = entry[2]
            self._clock = max(self._clock, item.score)
            del self._items[victim]
        for entry in skipped:
            heapq.heappush(self._heap, entry)
        return victim

    def _rescore(self, key: Key) -> None:
        item = self._items[key]
        self._tick += 1
        item.order = self._tick
        item.score = self._policy.score(
            self._clock, item.freq, item.saved_ms, item.num_bytes, float(self._tick)
        )
        heapq.heappush(self._heap, (item.score, item.order, key))
        if len(self._heap) > 64 + 4 * len(self._items):
            self._heap = [(i.score, i.order, k) for k, i in self._items.items()]
            heapq.heapify(self._heap)
