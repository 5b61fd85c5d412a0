from __future__ import annotations

import gc
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from store_parts import (
    NAMESPACE,
    SAVED,
    Served,
    changed,
    check,
    features_of,
    insert,
    mask_of,
    open_cache,
    picture,
    prefix_of,
)

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.store import keys
from flmm_detseg.store.background_cache import BackgroundCache
from flmm_detseg.store.keys import KeyMaker, cut_tiles
from flmm_detseg.store.records import BackgroundKey, Namespace
from flmm_detseg.store.settings import CacheSettings


def test_tiles_are_patches_in_raster_order():
    image = np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3)
    tiles = cut_tiles(image, 4)
    assert tiles.shape == (6, 48)
    assert np.array_equal(tiles[4].reshape(4, 4, 3), image[4:8, 4:8])
    with pytest.raises(DataError, match="multiples"):
        cut_tiles(image, 5)


def test_background_is_found_when_only_objects_changed():
    cache = open_cache()
    tiles = picture(0)
    stored, key = insert(cache, tiles, mask_of(3, 4), prefix_key="p")
    assert stored
    match = cache.match(changed(tiles, 3, 4), NAMESPACE, prefix_key="p")
    assert match is not None
    assert match.key.entry_id == key.entry_id
    assert check(match, tiles, "p") == Served(features=True, prefix=True)
    assert cache.match(changed(tiles, 5), NAMESPACE, prefix_key="p") is None


def test_other_prefix_still_gets_features():
    cache = open_cache()
    insert(cache, picture(0), mask_of(3), prefix_key="p")
    match = cache.match(picture(0), NAMESPACE, prefix_key="other")
    assert match is not None
    assert match.prefix is None
    assert check(match, picture(0)).features


def test_prefix_can_be_added_to_a_stored_background():
    cache = open_cache()
    insert(cache, picture(0), mask_of(3))
    match = cache.match(picture(0), NAMESPACE, prefix_key="p")
    assert match is not None
    prefix = prefix_of(match.key.pixels, "p")
    assert cache.insert(match.key, NAMESPACE, features=None, prefix=prefix, prefix_key="p", saved_ms=SAVED)
    match = cache.match(picture(0), NAMESPACE, prefix_key="p")
    assert match is not None
    assert check(match, picture(0), "p").prefix


@pytest.mark.parametrize(
    "other",
    [
        replace(NAMESPACE, tenant="another"),
        replace(NAMESPACE, vision_fp="new weights"),
        Namespace("tenantvision", "", "llm"),
    ],
)
def test_other_namespaces_see_nothing(other):
    cache = open_cache()
    _, key = insert(cache, picture(0), mask_of(3), session="s", prefix_key="p")
    assert cache.match(picture(0), other, session="s", prefix_key="p") is None
    with pytest.raises(DataError, match="namespace"):
        cache.insert(key, other, features=features_of(key.pixels), saved_ms=SAVED)


def test_other_language_model_keeps_features_only():
    cache = open_cache()
    insert(cache, picture(0), mask_of(3), prefix_key="p")
    match = cache.match(picture(0), replace(NAMESPACE, llm_fp="tuned"), prefix_key="p")
    assert match is not None
    assert match.prefix is None
    assert check(match, picture(0)).features


def test_equal_tiles_in_another_grid_are_another_image():
    cache = open_cache()
    insert(cache, picture(0), mask_of(3))
    assert cache.match(picture(0), NAMESPACE, grid=(4, 16)) is None
    assert cache.key(picture(0), mask_of(3), NAMESPACE, grid=(4, 16)).entry_id != (
        cache.key(picture(0), mask_of(3), NAMESPACE).entry_id
    )
    with pytest.raises(ConfigError, match="grid"):
        cache.match(picture(0)[:60], NAMESPACE)


def test_colliding_tile_hashes_are_harmless(monkeypatch):
    monkeypatch.setattr(
        KeyMaker, "tile_hashes", lambda self, tiles, places=None: np.zeros(len(tiles), np.uint64)
    )
    cache = open_cache()
    for seed in range(4):
        insert(cache, picture(seed), mask_of(3))
    for seed in range(4):
        match = cache.match(picture(seed), NAMESPACE)
        assert match is not None
        check(match, picture(seed))
    assert cache.match(picture(9), NAMESPACE) is None


@pytest.mark.parametrize("on_disk", [False, True])
def test_colliding_names_are_harmless(monkeypatch, tmp_path, on_disk):
    monkeypatch.setattr(KeyMaker, "digest", lambda self, *parts: "00" * 16)
    folder = str(tmp_path) if on_disk else None
    cache = open_cache(folder=folder)
    assert insert(cache, picture(0), mask_of(3), prefix_key="p")[0]
    assert not insert(cache, picture(1), mask_of(3), prefix_key="p")[0]
    assert cache.stats()["refused"] == {"collision": 1}
    # Features and prefix collide with each other as well: what is handed out is right, or nothing is.
    match = cache.match(picture(0), NAMESPACE)
    assert match is not None
    check(match, picture(0))
    assert cache.match(picture(1), NAMESPACE) is None
    if on_disk:
        again = open_cache(folder=folder)
        assert again.match(picture(1), NAMESPACE) is None
        match = again.match(picture(0), NAMESPACE)
        assert match is not None
        check(match, picture(0))


def test_plain_wallpaper_is_found_although_flat_tiles_do_not_vote():
    cache = open_cache()
    tiles = np.full((64, 48), 200, np.uint8)
    tiles[10] = picture(0)[10]
    insert(cache, tiles, mask_of(10))
    other = changed(tiles, 10)
    match = cache.match(other, NAMESPACE)
    assert match is not None
    check(match, other)


def test_flat_tiles_are_no_voters():
    tiles = picture(0)
    tiles[20:] = 7
    assert keys.flat_tiles(tiles).tolist() == [False] * 20 + [True] * 44
    cache = open_cache()
    _, key = insert(cache, tiles, mask_of(3))
    record = cache._tiers.index.get(cache._maker.bucket(NAMESPACE, (8, 8), 48), key.entry_id)
    assert record is not None
    textured = set(cache._maker.tile_hashes(tiles)[:20].tolist())
    assert record.voter_set <= textured


def test_entry_with_prefix_wins_then_the_one_with_more_live_tiles():
    cache = open_cache()
    tiles = picture(0)
    insert(cache, tiles, mask_of(1, 2, 3))
    insert(cache, tiles, mask_of(1, 2))
    match = cache.match(tiles, NAMESPACE, prefix_key="p")
    assert match is not None
    assert match.key.mask.sum() == 62
    insert(cache, tiles, mask_of(1, 2, 3, 4), prefix_key="p")
    match = cache.match(tiles, NAMESPACE, prefix_key="p")
    assert match is not None
    assert match.key.mask.sum() == 60
    assert match.prefix is not None


def test_a_background_that_leaves_most_to_compute_is_no_match():
    cache = open_cache()
    tiles = picture(0)
    mask = np.zeros(64, bool)
    mask[:32] = True
    insert(cache, tiles, mask)
    assert cache.match(tiles, NAMESPACE) is not None
    live = np.ones(64, bool)
    live[:20] = False
    # 12 of 44 live tiles are known.
    assert cache.match(tiles, NAMESPACE, live=live) is None


def test_sessions_last_backgrounds_are_tried_without_hashing(monkeypatch):
    cache = open_cache(session_depth=2)
    for seed in range(3):
        insert(cache, picture(seed), mask_of(3), session="s")
    calls: list[int] = []
    hashes = KeyMaker.tile_hashes
    monkeypatch.setattr(KeyMaker, "tile_hashes", lambda *args: (calls.append(1), hashes(*args))[1])
    for seed in (1, 2):
        match = cache.match(picture(seed), NAMESPACE, session="s")
        assert match is not None
        check(match, picture(seed))
    assert not calls
    assert cache.match(picture(0), NAMESPACE, session="s") is not None
    assert calls


def test_a_prefix_is_no_use_of_its_features():
    """Features beside a popular prefix save nothing: those that did serve outlive them."""
    size = 63 * 48 + 64 + 63 * 8 * 4
    prefix = 63 * 48 + 64 + 64 * 8 * 4 * 4
    cache = open_cache(host_bytes=3 * size + prefix)
    insert(cache, picture(0), mask_of(3), prefix_key="p")
    insert(cache, picture(1), mask_of(3))
    for _ in range(10):
        assert cache.match(picture(0), NAMESPACE, prefix_key="p").prefix is not None
    for _ in range(3):
        assert cache.match(picture(1), NAMESPACE) is not None
    for seed in range(2, 9):
        if cache.stats()["evicted"].get("host", 0) == 2:
            break
        insert(cache, picture(seed), mask_of(3))
    # The prefix went first, then these features.
    assert cache.match(picture(0), NAMESPACE, prefix_key="p") is None
    assert cache.match(picture(1), NAMESPACE) is not None


def test_a_tenant_evicts_its_own_backgrounds():
    size = 63 * 48 + 64 + 63 * 8 * 4
    cache = open_cache(tenant_bytes=3 * size, host_bytes=10 * size)
    other = replace(NAMESPACE, tenant="another")
    insert(cache, picture(100), mask_of(3), other)
    for seed in range(8):
        insert(cache, picture(seed), mask_of(3))
    assert cache.match(picture(100), other) is not None
    assert sum(cache.match(picture(seed), NAMESPACE) is not None for seed in range(8)) == 3
    assert cache.stats()["bytes"]["host"] == 4 * size
    assert cache.stats()["evicted"] == {"host": 5}
    assert cache.stats()["backgrounds"] == 4


def test_prefixes_are_evicted_before_features():
    cache = open_cache(host_bytes=80_000)
    for seed in range(12):
        insert(cache, picture(seed), mask_of(3), prefix_key="p")
    levels = [cache.match(picture(seed), NAMESPACE, prefix_key="p") for seed in range(12)]
    assert all(match is not None for match in levels)
    with_prefix = [check(match, picture(seed), "p").prefix for seed, match in enumerate(levels)]
    assert 0 < sum(with_prefix) < 12
    assert cache.stats()["bytes"]["host"] <= 80_000


def test_what_is_in_flight_is_not_evicted():
    size = 63 * 48 + 64 + 63 * 8 * 4
    cache = open_cache(host_bytes=2 * size)
    insert(cache, picture(0), mask_of(3))
    match = cache.match(picture(0), NAMESPACE)
    assert match is not None
    for seed in range(1, 6):
        insert(cache, picture(seed), mask_of(3))
    assert cache.stats()["in_flight"] == {"host": 1}
    assert cache.match(picture(0), NAMESPACE) is not None
    features = match.features
    del match
    gc.collect()
    assert cache.stats()["in_flight"] == {"host": 0}
    for seed in range(6, 12):
        insert(cache, picture(seed), mask_of(3))
    assert cache.match(picture(0), NAMESPACE) is None
    assert torch.equal(features, features_of(picture(0)[mask_of(3)]))


def test_donated_and_handed_out_tensors_do_not_reach_the_store():
    cache = open_cache()
    tiles = picture(0)
    key = cache.key(tiles, mask_of(3), NAMESPACE)
    with torch.inference_mode():
        features = features_of(key.pixels)
        cache.insert(key, NAMESPACE, features=features, saved_ms=SAVED)
        features.zero_()
    loose = BackgroundKey(key.mask.copy(), key.pixels.copy(), key.entry_id, key.grid)
    assert cache.insert(
        loose, NAMESPACE, features=None, prefix=prefix_of(key.pixels, "p"), prefix_key="p", saved_ms=SAVED
    )
    loose.pixels[:] = 0
    loose.mask[:] = False
    tiles_before = tiles.copy()
    tiles[5] = 0
    match = cache.match(tiles_before, NAMESPACE, prefix_key="p")
    assert match is not None
    assert check(match, tiles_before, "p").prefix
    with pytest.raises(ValueError, match="read-only"):
        match.key.pixels[0] = 0
    with torch.inference_mode():
        match.features.view(-1)[:3].add_(1)
    assert cache.match(tiles_before, NAMESPACE) is None
    assert cache.stats()["dropped"] == {"written": 1}


def test_device_tier_serves_and_host_keeps():
    size = 63 * 48 + 64 + 63 * 8 * 4
    cache = open_cache(device="cpu", device_bytes=2 * size, host_bytes=10 * size)
    for seed in range(4):
        insert(cache, picture(seed), mask_of(3))
    assert cache.stats()["values"] == {"device": 2, "host": 4}
    for seed in range(4):
        match = cache.match(picture(seed), NAMESPACE)
        assert match is not None
        check(match, picture(seed))


def test_clear_removes_one_namespace_or_all(tmp_path):
    cache = open_cache(folder=str(tmp_path))
    other = replace(NAMESPACE, tenant="another")
    insert(cache, picture(0), mask_of(3), prefix_key="p")
    insert(cache, picture(0), mask_of(3), other)
    cache.clear(NAMESPACE)
    assert cache.match(picture(0), NAMESPACE, prefix_key="p") is None
    assert cache.match(picture(0), other) is not None
    assert len(list((tmp_path / "entries").iterdir())) == 1
    cache.clear()
    assert cache.match(picture(0), other) is None
    assert cache.stats()["values"] == {"host": 0}
    assert not list((tmp_path / "entries").iterdir())


def test_statistics_as_table_and_prometheus_text():
    cache = open_cache()
    insert(cache, picture(0), mask_of(3), prefix_key="p")
    cache.count(cache.match(picture(0), NAMESPACE, prefix_key="p"))
    # Looking for something is no request yet.
    cache.match(picture(0), NAMESPACE)
    cache.count(cache.match(picture(0), NAMESPACE))
    cache.count(cache.match(picture(1), NAMESPACE))
    stats = cache.stats()
    assert stats["requests"] == {"L2": 1, "L1": 1, "miss": 1}
    assert stats["saved_ms"] == {"L2": 80.0, "L1": 5.0}
    assert "| requests | L2 | 1 |" in cache.stats_table()
    assert "| hit rate | all levels | 0.667 |" in cache.stats_table()
    text = cache.prometheus()
    assert '# TYPE flmm_cache_requests_total counter\nflmm_cache_requests_total{level="L1"} 1' in text
    assert 'flmm_cache_values{tier="host"} 2' in text


def test_wrong_arguments_are_refused():
    with pytest.raises(ConfigError, match="eviction policy 'fifo' is unknown"):
        BackgroundCache(CacheSettings(eviction="fifo"))
    with pytest.raises(ConfigError, match="secret"):
        CacheSettings(redis_url="redis://localhost")
    with pytest.raises(ConfigError, match="device or pinned memory"):
        open_cache(device="nowhere:0")
    cache = open_cache()
    key = cache.key(picture(0), mask_of(3), NAMESPACE)
    with pytest.raises(DataError, match="a row for every tile"):
        cache.insert(key, NAMESPACE, features=torch.zeros(64, 8), saved_ms=SAVED)
    with pytest.raises(ConfigError, match="L1 and L2"):
        cache.insert(key, NAMESPACE, features=features_of(key.pixels), saved_ms={"l1": 1.0})
    with pytest.raises(ConfigError, match="prefix_key"):
        cache.insert(key, NAMESPACE, features=None, prefix=prefix_of(key.pixels, "p"), saved_ms=SAVED)
    with pytest.raises(DataError, match="uint8"):
        cache.match(picture(0).astype(np.float32), NAMESPACE)


def test_threads_hammering_get_right_values_only(tmp_path):
    cache = open_cache(host_bytes=60_000, folder=str(tmp_path), disk_bytes=150_000, tenant_bytes=140_000)
    failures: list[BaseException] = []
    hits: list[int] = []

    def work(number: int) -> None:
        random = np.random.default_rng(number)
        try:
            for _ in range(60):
                seed = int(random.zipf(1.5)) % 24
                tiles = changed(picture(seed), 3)
                match = cache.match(tiles, NAMESPACE, session=f"s{number % 3}", prefix_key="p")
                if match is None:
                    insert(cache, tiles, mask_of(3), prefix_key="p", session=f"s{number % 3}")
                else:
                    check(match, tiles, "p")
                    hits.append(seed)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(hits) > 50
    gc.collect()
    stats = cache.stats()
    assert stats["in_flight"] == {"host": 0}
    assert stats["bytes"]["host"] <= 60_000
    assert stats["errors"] == {"disk": 0}
    stored = sum(unit.num_bytes for unit in cache._tiers.memory["host"]._units.values())
    assert stored == stats["bytes"]["host"]
