from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from flmm_detseg.errors import ConfigError
from flmm_detseg.store.eviction import EVICTION, EvictionQueue, build_policy
from flmm_detseg.store.memory import MemoryTier, Unit
from flmm_detseg.store.records import BackgroundKey

ROOT = Path(__file__).parents[2]


def unit(name: str, num_bytes: int = 10, saved_ms: float = 1.0, level: str = "L1", tenant: str = "t") -> Unit:
    key = BackgroundKey(np.ones(1, bool), np.zeros((1, 3), np.uint8), name, (1, 1))
    return Unit(name, level, tenant, "bucket", "scope", key, num_bytes, saved_ms, torch.zeros(1))


def order(queue: EvictionQueue) -> list:
    found = []
    while (key := queue.evict()) is not None:
        found.append(key)
    return found


def test_gdsf_keeps_what_saves_most_per_byte():
    queue = EvictionQueue(build_policy("gdsf"))
    queue.add("large", 1000, 50.0)
    queue.add("small", 10, 1.0)
    queue.add("used", 1000, 50.0)
    for _ in range(2):
        queue.touch("used")
    assert order(queue) == ["large", "small", "used"]


def test_gdsf_forgets_old_fame():
    queue = EvictionQueue(build_policy("gdsf"))
    queue.add("star", 1, 1.0)
    for _ in range(20):
        queue.touch("star")
    victims = []
    for number in range(60):
        queue.add(number, 1, 1.0)
        queue.touch(number)
        if len(queue) > 3:
            victims.append(queue.evict())
    assert victims[0] == 0
    # The clock of the evicted ones has passed what it was worth.
    assert "star" in victims[10:]


def test_lru_evicts_the_longest_unused_whatever_it_saves():
    queue = EvictionQueue(build_policy("lru"))
    for name in "abc":
        queue.add(name, 1, 1000.0 if name == "b" else 0.0)
    queue.touch("a")
    assert order(queue) == ["b", "c", "a"]


@pytest.mark.parametrize("policy", ["gdsf", "lru"])
def test_queue_equals_a_plain_search(policy):
    random = np.random.default_rng(0)
    rules = build_policy(policy)
    queue, plain, clock = EvictionQueue(rules), {}, 0.0
    for tick in range(1, 3000):
        key = int(random.integers(60))
        if key in plain:
            if random.random() < 0.1:
                queue.remove(key)
                del plain[key]
                continue
            queue.touch(key)
            size, saved, freq, _ = plain[key]
            freq += 1
        else:
            size, saved, freq = int(random.integers(1, 9)), float(random.integers(1, 50)), 1
            queue.add(key, size, saved)
        plain[key] = (size, saved, freq, (rules.score(clock, freq, saved, size, tick), tick))
        if len(plain) > 20:
            skip = int(random.integers(60))
            wanted = min((key for key in plain if key != skip), key=lambda key: plain[key][3])
            assert queue.evict(lambda key, skip=skip: key != skip) == wanted
            clock = max(clock, plain.pop(wanted)[3][0])
        assert len(queue) == len(plain)


def test_registry_lists_both_and_refuses_others():
    assert set(EVICTION.module_dict) == {"gdsf", "lru"}
    with pytest.raises(ConfigError, match="there are"):
        build_policy("random")


def test_tier_keeps_its_budgets_and_counts():
    evicted: list[str] = []
    tier = MemoryTier("host", 100, build_policy("gdsf"), 60, lambda unit: evicted.append(unit.name))
    assert not tier.put(unit("too large", 61))
    for number in range(5):
        assert tier.put(unit(f"a{number}", 20, tenant="a"))
    assert tier.num_bytes == 60
    assert len(evicted) == 2
    for number in range(3):
        assert tier.put(unit(f"b{number}", 20, saved_ms=99.0, tenant="b"))
    assert tier.num_bytes == 100
    assert tier.bytes_by_tenant["a"] == 40
    assert tier.bytes_by_tenant["b"] == 60


def test_large_prefixes_leave_before_features():
    evicted: list[str] = []
    tier = MemoryTier("host", 100, build_policy("lru"), None, lambda unit: evicted.append(unit.name))
    tier.put(unit("features", 40))
    tier.put(unit("prefix", 60, level="L2"))
    tier.put(unit("more features", 40))
    assert evicted == ["prefix"]
    tier.put(unit("another prefix", 20, level="L2"))
    tier.put(unit("large prefix", 70, level="L2"))
    assert evicted == ["prefix", "another prefix", "features", "more features"]


def test_pinned_units_stay_and_a_put_that_cannot_succeed_evicts_nothing():
    tier = MemoryTier("host", 100, build_policy("lru"))
    tier.put(unit("pinned", 50))
    tier.put(unit("free", 50))
    tier.pin("pinned")
    assert not tier.put(unit("large", 60))
    assert "free" in tier
    assert tier.put(unit("small", 40))
    assert "pinned" in tier
    tier.release("pinned")
    assert tier.put(unit("large", 60))
    assert "pinned" not in tier
    assert tier.num_pinned == 0


def test_trace_benchmark_runs_and_gdsf_beats_lru_where_popularity_stays(monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("cache_trace", ROOT / "benchmarks" / "cache_trace.py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["cache_trace", "--quick"])
    with pytest.raises(SystemExit) as stop:
        module.run_tool(module.main)
    assert stop.value.code == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["gdsf_minus_lru_saved_share"]["cells"] == 16
    for trace in ("zipf", "scan", "mixed"):
        cell = figures["traces"][trace]["0.1"]["second_sighting"]
        assert cell["gdsf"]["saved_share"] > cell["lru"]["saved_share"]
