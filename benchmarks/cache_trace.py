"""Which eviction policy saves more: GDSF (saved milliseconds per byte) against LRU on synthetic request traces.

A request shows one background. The classes that serve requests decide: the memory tier, its two levels (L1 vision
features, L2 keys and values of the prefix) and the registered policies; only the tensors are stand-ins of zero bytes
with declared sizes. Sizes and milliseconds are those of a LLaVA-1.5-7B in bf16 on a card of 172 effective TFLOP/s
(sections 4.5 and 5.1 of the reference): 2 KiB and 512 KiB a tile, 588 bytes of pixels, milliseconds in proportion to
the FLOPs that a hit saves. Backgrounds cover 30 to 100 percent of the image.

Traces: ``zipf`` (few popular backgrounds), ``scan`` (the same, interrupted by runs of backgrounds that never come
again), ``shift`` (what is popular changes), ``mixed`` (popular small backgrounds beside rarer large ones). Every trace
is served under byte budgets that hold a share of all its values, with admission at first sight and at second sight.

Example: ``python benchmarks/cache_trace.py`` (about 1 minute); ``--quick`` for a smoke test.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from flmm_detseg.store.admission import GhostList
from flmm_detseg.store.eviction import EVICTION, build_policy
from flmm_detseg.store.memory import MemoryTier, Unit
from flmm_detseg.store.records import BackgroundKey
from flmm_detseg.store.tile_index import make_record
from flmm_detseg.utils.cli import run_tool

NUM_PATCHES, SYSTEM_TOKENS = 576, 40
PIXEL_BYTES, FEATURE_BYTES, KV_BYTES = 588, 2048, 512 * 1024
LLM_FLOP, VIT_FLOP, FLOP_PER_MS = 12.95e9, 0.366e12 / NUM_PATCHES, 172e9
NOTHING = torch.zeros(0)


@dataclass(frozen=True)
class Background:
    """One background of a trace: its tiles, and what its two values weigh and save."""

    number: int
    num_tiles: int

    @property
    def l1(self) -> tuple[int, float]:
        """Bytes and saved milliseconds of the vision features."""
        return self.num_tiles * (PIXEL_BYTES + FEATURE_BYTES), self.num_tiles * VIT_FLOP / FLOP_PER_MS

    @property
    def l2(self) -> tuple[int, float]:
        """Bytes and saved milliseconds of the prefix (the features need not be computed either)."""
        tokens = SYSTEM_TOKENS + self.num_tiles
        saved = (tokens * LLM_FLOP + self.num_tiles * VIT_FLOP) / FLOP_PER_MS
        return tokens * KV_BYTES + self.num_tiles * PIXEL_BYTES, saved


def zipf_ranks(random: np.random.Generator, num_items: int, length: int, exponent: float = 0.9) -> np.ndarray:
    """``[length]`` item numbers; item r is asked for in proportion to ``1 / (r + 1) ** exponent``."""
    weights = 1.0 / np.arange(1, num_items + 1) ** exponent
    return random.choice(num_items, size=length, p=weights / weights.sum())


def trace_zipf(random: np.random.Generator, num_items: int, length: int) -> np.ndarray:
    return zipf_ranks(random, num_items, length)


def trace_scan(random: np.random.Generator, num_items: int, length: int) -> np.ndarray:
    """A third of all requests are runs of backgrounds that are seen once."""
    requests = zipf_ranks(random, num_items, length)
    run = max(1, length // 60)
    next_item = num_items
    for start in range(0, length - run, 3 * run):
        requests[start : start + run] = np.arange(next_item, next_item + run)
        next_item += run
    return requests


def trace_shift(random: np.random.Generator, num_items: int, length: int) -> np.ndarray:
    """Ten periods; each has its own order of popularity."""
    ranks = zipf_ranks(random, num_items, length, 1.1)
    orders = [random.permutation(num_items) for _ in range(10)]
    return np.array([orders[10 * i // length][rank] for i, rank in enumerate(ranks)])


def trace_mixed(random: np.random.Generator, num_items: int, length: int) -> np.ndarray:
    """Popularity falls with size: see ``sizes``."""
    return zipf_ranks(random, num_items, length, 0.7)


TRACES: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "zipf": trace_zipf,
    "scan": trace_scan,
    "shift": trace_shift,
    "mixed": trace_mixed,
}


def backgrounds(random: np.random.Generator, trace: str, numbers: np.ndarray) -> dict[int, Background]:
    """Sizes of all backgrounds of a trace; in ``mixed`` the popular ones are the small ones."""
    low, high = int(0.3 * NUM_PATCHES), NUM_PATCHES
    tiles = random.integers(low, high + 1, int(numbers.max()) + 1)
    if trace == "mixed":
        tiles = np.sort(tiles)
    return {int(number): Background(int(number), int(tiles[number])) for number in np.unique(numbers)}


def make_unit(background: Background, level: str) -> Unit:
    """A stored value of declared size."""
    num_bytes, saved_ms = background.l1 if level == "L1" else background.l2
    key = BackgroundKey(np.ones(1, bool), np.zeros((1, 1), np.uint8), f"{background.number}", (1, 1))
    return Unit(
        f"{level}-{background.number}", level, "tenant", "bucket", "scope", key, num_bytes, saved_ms, NOTHING
    )  # fmt: skip


def serve(
    requests: np.ndarray, known: dict[int, Background], budget: int, policy: str, admission: str
) -> dict[str, float]:
    """Runs a trace through a memory tier.

    Returns:
        Share of requests that L2 and that at least L1 served, and saved milliseconds as a share of those an unlimited
        store at first sight would save.
    """
    tier = MemoryTier("host", budget, build_policy(policy))
    ghosts = GhostList(depth=1024)
    hits = {"L1": 0, "L2": 0}
    saved = possible = 0.0
    seen: set[int] = set()
    for number in requests.tolist():
        background = known[number]
        if number in seen:
            possible += background.l2[1]
        seen.add(number)
        unit = next((u for level in ("L2", "L1") if (u := tier.use(f"{level}-{number}"))), None)
        if unit is not None:
            hits[unit.level] += 1
            saved += unit.saved_ms
        if unit is not None and unit.level == "L2":
            continue
        if unit is None and admission == "second_sighting":
            record = make_record(make_unit(background, "L1").key, "bucket", "scope", np.zeros(1, np.uint64))
            if not ghosts.admits(record, np.zeros(1, np.uint64)):
                continue
        tier.put(make_unit(background, "L1"))
        tier.put(make_unit(background, "L2"))
    return {
        "hit_rate": round(sum(hits.values()) / len(requests), 4),
        "hit_rate_l2": round(hits["L2"] / len(requests), 4),
        "saved_share": round(saved / possible, 4) if possible else 0.0,
    }


def benchmark(num_items: int, length: int, shares: list[float], seed: int) -> dict[str, Any]:
    """All traces, budgets, policies and admissions.

    Args:
        num_items: Backgrounds that come again.
        length: Requests of a trace.
        shares: Budgets, as shares of the bytes of all values of those backgrounds.
        seed: Of the traces.

    Returns:
        Figures, ready for JSON.
    """
    policies, admissions = sorted(EVICTION.module_dict), ("always", "second_sighting")
    results: dict[str, Any] = {}
    with tqdm(total=len(TRACES) * len(shares) * len(policies) * 2, desc="cache trace") as bar:
        for name, make in TRACES.items():
            random = np.random.default_rng(seed)
            requests = make(random, num_items, length)
            known = backgrounds(random, name, requests)
            recurring = [background for number, background in known.items() if number < num_items]
            total = sum(background.l1[0] + background.l2[0] for background in recurring)
            for share in shares:
                for policy in policies:
                    for admission in admissions:
                        bar.set_postfix_str(f"{name} {share} {policy}")
                        figures = serve(requests, known, int(share * total), policy, admission)
                        budget = results.setdefault(name, {}).setdefault(str(share), {})
                        budget.setdefault(admission, {})[policy] = figures
                        bar.update()
    gains = [
        cell["gdsf"]["saved_share"] - cell["lru"]["saved_share"]
        for budgets in results.values()
        for admissions_of in budgets.values()
        for cell in admissions_of.values()
    ]
    return {
        "benchmark": "cache_trace",
        "num_backgrounds": num_items,
        "num_requests": length,
        "seed": seed,
        "gdsf_minus_lru_saved_share": {
            "mean": round(float(np.mean(gains)), 4),
            "least": round(min(gains), 4),
            "most": round(max(gains), 4),
            "cells_gdsf_better": sum(gain > 0 for gain in gains),
            "cells": len(gains),
        },
        "traces": results,
    }


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backgrounds", type=int, default=400, help="backgrounds that come again")
    parser.add_argument("--requests", type=int, default=20_000, help="requests of a trace")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="tiny traces: does it run?")
    arguments = parser.parse_args()
    if arguments.quick:
        return benchmark(30, 400, [0.1, 0.5], arguments.seed)
    shares = [0.02, 0.05, 0.1, 0.2, 0.4]
    return benchmark(max(2, arguments.backgrounds), max(100, arguments.requests), shares, arguments.seed)


if __name__ == "__main__":
    run_tool(main)
