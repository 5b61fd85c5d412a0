"""Time of a look-up in a background cache with few and with many entries: it must not depend on their number.

Two kinds of entries: images that share nothing, and images of one wallpaper, of which half of the tiles are the same in
all of them (and stand in the mask of every entry). A hit shows a stored background beside another object, a miss shows
none. Timed is all of ``BackgroundCache.match``; the cache lies in memory, and no stream's history helps. The last line
is JSON; exit code 2 when the median of a hit or a miss exceeds the limit.

Example: ``python benchmarks/cache_lookup.py`` (about 1 minute on 1 core, 1 GB); ``--entries 200`` for a smoke test.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np
import torch

from flmm_detseg.cache import BackgroundCache, CacheSettings
from flmm_detseg.errors import RunError
from flmm_detseg.store.records import Namespace
from flmm_detseg.utils.cli import run_tool

KINDS = ("distinct", "wallpaper")
_GRID, _TILE_BYTES = (14, 14), 4 * 4 * 3
_NAMESPACE = Namespace("tenant", "vision", "language")


def images_of(kind: str, seed: int, num_tiles: int) -> np.ndarray:
    """Tiles ``[N, bytes]`` of the image with that number."""
    tiles = np.random.default_rng(seed).integers(0, 256, (num_tiles, _TILE_BYTES), dtype=np.uint8)
    if kind == "wallpaper":
        tiles[::2] = np.random.default_rng(0).integers(0, 256, tiles[::2].shape, dtype=np.uint8)
    return tiles


def lookup_times(kind: str, num_entries: int, num_lookups: int) -> dict[str, float]:
    """Milliseconds of a hit and a miss (median and 95th percentile) with that many entries.

    Args:
        kind: One of ``KINDS``.
        num_entries: Backgrounds in the cache.
        num_lookups: Timed hits, and as many misses.
    """
    num_tiles = _GRID[0] * _GRID[1]
    mask = np.ones(num_tiles, bool)
    mask[20:26] = False
    cache = BackgroundCache(CacheSettings(admission="always", host_bytes=64 << 30, index_records=10**9))
    features = torch.zeros(int(mask.sum()), 1)
    for seed in range(1, num_entries + 1):
        key = cache.key(images_of(kind, seed, num_tiles), mask, _NAMESPACE, grid=_GRID)
        cache.insert(key, _NAMESPACE, features=features, saved_ms={"L1": 1.0})
    times: dict[str, list[float]] = {"hit": [], "miss": []}
    for turn in range(num_lookups):
        shown = images_of(kind, 1 + turn * 7919 % num_entries, num_tiles)
        shown[~mask] ^= 255
        for name, tiles in (
            ("hit", shown),
            ("miss", images_of(kind, num_entries + 1 + turn, num_tiles)),
        ):
            start = time.perf_counter()
            found = cache.match(tiles, _NAMESPACE, grid=_GRID)
            times[name].append(1e3 * (time.perf_counter() - start))
            assert (found is not None) == (name == "hit"), (kind, turn, name)
    cache.close()
    figures = {}
    for name, values in times.items():
        figures[f"{name}_ms"] = round(statistics.median(values), 3)
        figures[f"{name}_p95_ms"] = round(float(np.percentile(values, 95)), 3)
    return figures


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entries", type=int, default=20_000, help="backgrounds in the larger cache")
    parser.add_argument("--lookups", type=int, default=300, help="timed hits, and as many misses")
    parser.add_argument("--limit-ms", type=float, default=0.5, help="largest median that is right")
    arguments = parser.parse_args()
    rows = [
        {"kind": kind, "entries": entries, **lookup_times(kind, entries, arguments.lookups)}
        for kind in KINDS
        for entries in sorted({min(10, arguments.entries), arguments.entries})
    ]
    print("\n| entries | kind | hit, ms | miss, ms |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['entries']} | {row['kind']} | {row['hit_ms']} | {row['miss_ms']} |")
    slowest = max(max(row["hit_ms"], row["miss_ms"]) for row in rows)
    figures = {
        "benchmark": "cache_lookup",
        "limit_ms": arguments.limit_ms,
        "slowest_ms": slowest,
        "rows": rows,
    }
    if slowest > arguments.limit_ms:
        print(json.dumps(figures))
        raise RunError(f"a look-up takes {slowest} ms, more than {arguments.limit_ms} ms")
    return figures


if __name__ == "__main__":
    run_tool(main)
