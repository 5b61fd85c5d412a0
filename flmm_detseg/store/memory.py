"""Values in memory (of the host or of a device) under a byte budget."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flmm_detseg.store.eviction import EvictionPolicy, EvictionQueue
from flmm_detseg.store.records import BackgroundKey, PrefixKV

Level = Literal["L1", "L2"]


def copy_tensor(tensor: Tensor, device: str, pin: bool = False) -> Tensor:
    """A contiguous copy that shares no memory and has no gradient.

    Made outside inference mode, in which tensors have no version counter that shows a write.
    """
    with torch.inference_mode(False), torch.no_grad():
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, device=device, pin_memory=pin)
        return copy.copy_(tensor)


def copy_value(value: Tensor | PrefixKV, device: str, pin: bool = False) -> Tensor | PrefixKV:
    """See :func:`copy_tensor`."""
    if isinstance(value, PrefixKV):
        keys = [copy_tensor(tensor, device, pin) for tensor in value.keys]
        return PrefixKV(keys, [copy_tensor(tensor, device, pin) for tensor in value.values])
    return copy_tensor(value, device, pin)


def tensors_of(value: Tensor | PrefixKV) -> list[Tensor]:
    """All tensors of a value."""
    return [*value.keys, *value.values] if isinstance(value, PrefixKV) else [value]


def num_bytes_of(value: Tensor | PrefixKV) -> int:
    """Bytes of a value's tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(value))


@dataclass(eq=False)
class Unit:
    """One stored value.

    Attributes:
        name: Names it in every tier.
        level: ``L1`` vision features, ``L2`` keys and values of a prefix.
        tenant: Hashed owner.
        bucket: Images its background can be compared with.
        scope: Hashed tenant and vision fingerprint.
        key: The background it belongs to, with the pixels that verify it.
        num_bytes: What it counts against budgets: tensors and the pixels that verify it.
        saved_ms: Milliseconds one use saves.
        value: Never written to.
    """

    name: str
    level: Level
    tenant: str
    bucket: str
    scope: str
    key: BackgroundKey
    num_bytes: int
    saved_ms: float
    value: Tensor | PrefixKV

    def __post_init__(self) -> None:
        self._versions = self._count_writes()

    def _count_writes(self) -> list[int]:
        # What a caller brings may be made in inference mode; the tiers' own copies never are.
        return [-1 if tensor.is_inference() else tensor._version for tensor in tensors_of(self.value)]

    @property
    def intact(self) -> bool:
        """False when a tensor that was handed out has been written to."""
        return self._versions == self._count_writes()


class MemoryTier:
    """Units under one budget. Not thread-safe: the cache holds a lock.

    A unit that is in flight (pinned) is not evicted: dropping it would free nothing, since a request uses its tensors.
    L2 is evicted before L1: it is hundreds of times larger, and L1 outlives changes of the prompt.

    Args:
        name: For statistics (``host``, ``device``).
        budget: Bytes.
        policy: Order of eviction within a level.
        tenant_budget: Bytes one tenant may hold here; its own units make room. None: no limit.
        on_evict: Called with each evicted unit.
    """

    def __init__(
        self,
        name: str,
        budget: int,
        policy: EvictionPolicy,
        tenant_budget: int | None = None,
        on_evict: Callable[[Unit], None] | None = None,
    ) -> None:
        self.name = name
        self.budget = budget
        self._tenant_budget = budget if tenant_budget is None else min(budget, tenant_budget)
        self._queues: dict[Level, EvictionQueue[str]] = {
            "L2": EvictionQueue(policy),
            "L1": EvictionQueue(policy),
        }
        self._units: dict[str, Unit] = {}
        self._pins: Counter[str] = Counter()
        # Filled by finalizers, which may run in any thread and at any moment: an append takes no lock.
        self._released: deque[str] = deque()
        self._on_evict = on_evict
        self.num_bytes = 0
        self.bytes_by_tenant: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._units)

    def __contains__(self, name: str) -> bool:
        return name in self._units

    def peek(self, name: str) -> Unit | None:
        """The unit, without counting a use."""
        return self._units.get(name)

    def use(self, name: str) -> Unit | None:
        """The unit, counted as used; None when it is not here."""
        unit = self._units.get(name)
        if unit is not None:
            self._queues[unit.level].touch(name)
        return unit

    def put(self, unit: Unit) -> bool:
        """Stores a unit, evicting others when need be; False when it cannot fit."""
        self._drain()
        if unit.name in self._units:
            return True
        if unit.num_bytes > self._tenant_budget:
            return False
        over = self.bytes_by_tenant[unit.tenant] + unit.num_bytes - self._tenant_budget
        if over > 0 and not self._make_room(over, unit.tenant):
            return False
        over = self.num_bytes + unit.num_bytes - self.budget
        if over > 0 and not self._make_room(over, None):
            return False
        self._units[unit.name] = unit
        self._queues[unit.level].add(unit.name, unit.num_bytes, unit.saved_ms)
        self._count(unit, 1)
        return True

    def remove(self, name: str) -> Unit | None:
        """Removes a unit; requests that use its tensors keep them."""
        unit = self._units.pop(name, None)
        if unit is not None:
            self._queues[unit.level].remove(name)
            self._count(unit, -1)
        return unit

    def pin(self, name: str) -> None:
        """Marks a unit as in flight; :meth:`release` ends it."""
        self._pins[name] += 1

    def release(self, name: str) -> None:
        """Ends one pin. May be called from any thread, without the lock."""
        self._released.append(name)

    @property
    def num_pinned(self) -> int:
        """Units in flight."""
        self._drain()
        return len(self._pins)

    def _drain(self) -> None:
        while self._released:
            name = self._released.popleft()
            self._pins[name] -= 1
            if self._pins[name] <= 0:
                del self._pins[name]

    def _make_room(self, wanted: int, tenant: str | None) -> bool:
        """Evicts ``wanted`` bytes (of one tenant), L2 first; evicts nothing when that cannot succeed."""

        def eligible(name: str) -> bool:
            return name not in self._pins and (tenant is None or self._units[name].tenant == tenant)

        evictable = self.num_bytes if tenant is None else self.bytes_by_tenant[tenant]
        pinned = [self._units[name] for name in self._pins if name in self._units]
        evictable -= sum(unit.num_bytes for unit in pinned if tenant is None or unit.tenant == tenant)
        if evictable < wanted:
            return False
        for queue in self._queues.values():
            while wanted > 0 and (name := queue.evict(eligible)) is not None:
                unit = self._units.pop(name)
                self._count(unit, -1)
                wanted -= unit.num_bytes
                if self._on_evict is not None:
                    self._on_evict(unit)
        return True

    def _count(self, unit: Unit, sign: int) -> None:
        self.num_bytes += sign * unit.num_bytes
        self.bytes_by_tenant[unit.tenant] += sign * unit.num_bytes
