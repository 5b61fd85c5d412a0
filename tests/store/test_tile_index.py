"""Votes of tile hashes: what an image may show, found without looking at every record."""

from __future__ import annotations

import statistics
import time

import numpy as np
import pytest

from flmm_detseg.store.tile_index import MAX_VOTERS, Record, TileIndex

GRID, TILES = (6, 6), 36


def record_of(name: str, bucket: str, mask: np.ndarray, hashes: np.ndarray, flat: np.ndarray) -> Record:
    """As the store makes it: voters are spread over the tiles that are not flat."""
    inside = hashes[mask]
    chosen = np.flatnonzero(~flat[mask])
    chosen = chosen if len(chosen) else np.arange(len(inside))
    spread = np.linspace(0, len(chosen) - 1, min(MAX_VOTERS, len(chosen))).round().astype(int)
    digest = int(inside.sum(dtype=np.uint64))
    return Record(name, bucket, "scope", GRID, mask, inside[chosen[spread]], digest)


def all_compared(records: list[Record], hashes: np.ndarray) -> set[str]:
    """The rule itself: all voters occur in the image, and the digest fits."""
    tiles = set(hashes.tolist())
    return {
        record.entry_id
        for record in records
        if record.voter_set
        and record.voter_set <= tiles
        and int(hashes[record.indices].sum(dtype=np.uint64)) == record.digest
    }


@pytest.mark.parametrize("num_hashes", [1, 4, 2**60])
@pytest.mark.parametrize("seed", range(3))
def test_the_index_finds_what_comparing_everything_finds(seed, num_hashes):
    """Few hashes make collisions, few pictures make wallpapers; tenants have buckets of their own."""
    rng = np.random.default_rng(seed)
    pictures = [rng.integers(0, num_hashes, TILES, dtype=np.uint64) for _ in range(4)]
    flat = rng.random(TILES) < 0.3
    index, records, hits = TileIndex(), {"one": [], "other": []}, 0
    for step in range(400):
        bucket = str(rng.choice(["one", "one", "other"]))
        known = records[bucket]
        shown = pictures[rng.integers(4)].copy()
        changed = rng.random(TILES) < rng.choice([0.0, 0.1, 0.5])
        shown[changed] = rng.integers(0, num_hashes, changed.sum(), dtype=np.uint64)
        if known and rng.random() < 0.25:
            gone = known.pop(rng.integers(len(known)))
            index.remove(gone)
            # Once more is nothing.
            index.remove(gone)
        else:
            mask = rng.random(TILES) < rng.choice([0.1, 0.7, 1.0])
            known.append(record_of(str(step), bucket, mask, shown, flat))
            index.add(known[-1])
        proposals = index.proposals(bucket, shown)
        found = [record.entry_id for record in proposals.records()]
        assert len(found) == len(set(found))
        assert set(found) == all_compared(known, shown)
        hits += len(found) > 1
    assert hits > 50
    assert len(index) == sum(map(len, records.values()))
    for known in records.values():
        for record in known:
            index.remove(record)
    assert (index._records, index._postings, len(index)) == ({}, {}, 0)


@pytest.mark.parametrize("shared", ["nothing", "half", "voters", "voters and digest"])
def test_a_look_up_takes_as_long_with_many_records_as_with_few(shared):
    """Also when all records have all voters in common."""
    rng = np.random.default_rng(0)
    wall = rng.integers(0, 2**60, TILES, dtype=np.uint64)
    mask, flat = np.ones(TILES, bool), np.zeros(TILES, bool)

    def image() -> np.ndarray:
        hashes = wall.copy()
        places = {"nothing": slice(None), "half": slice(None, None, 2)}.get(shared, [1])
        hashes[places] = rng.integers(0, 2**60, len(hashes[places]), dtype=np.uint64)
        if shared == "voters and digest":
            hashes[:] = wall
        return hashes

    indexes = {}
    for count in (4, 4000):
        indexes[count] = TileIndex()
        for number in range(count):
            indexes[count].add(record_of(str(number), "b", mask, image(), flat))
    if shared == "voters and digest":
        # One background under many names: all of them are the answer.
        assert len(indexes[4000].proposals("b", wall).records()) == 4000
        return
    if shared == "voters":
        # Tile 1 is no voter.
        assert len({record.voter_set for record in indexes[4000].records("b")}) == 1
    times = {count: [] for count in indexes}
    for _ in range(100):
        shown = image()
        for count, index in indexes.items():
            start = time.perf_counter()
            assert index.proposals("b", shown).records() == []
            times[count].append(time.perf_counter() - start)
    # Comparing all of them takes several hundred times as long.
    assert statistics.median(times[4000]) < 5 * statistics.median(times[4])


def test_many_masks_over_one_wallpaper_are_summed_in_one_pass():
    rng = np.random.default_rng(0)
    wall = rng.integers(0, 2**64, TILES, dtype=np.uint64)
    flat, index, records = np.zeros(TILES, bool), TileIndex(), []
    for number in range(500):
        records.append(record_of(str(number), "b", rng.random(TILES) < 0.6, wall, flat))
        index.add(records[-1])
    for _ in range(5):
        shown = wall.copy()
        shown[rng.integers(0, TILES, 3)] += np.uint64(1)
        proposals = index.proposals("b", shown)
        found = {record.entry_id for record in proposals.records()}
        assert found == all_compared(records, shown)
        assert 5 < len(found) < 400


def test_the_latest_that_suit():
    index, rng = TileIndex(), np.random.default_rng(0)
    for number in range(6):
        hashes = rng.integers(0, 2**60, TILES, dtype=np.uint64)
        index.add(record_of(str(number), "b", np.ones(TILES, bool), hashes, np.zeros(TILES, bool)))
    found = index.latest("b", 2, lambda record: record.entry_id != "4")
    assert [record.entry_id for record in found] == ["3", "5"]
    assert index.latest("c", 2, lambda record: True) == []
