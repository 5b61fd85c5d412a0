"""What is stored, and what is not: small, first seen, never served, too many at once, of a level that is not kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
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
)

from flmm_detseg.errors import DataError
from flmm_detseg.store.admission import StaticStreams


def test_second_sighting_is_stored():
    cache = open_cache(admission="second_sighting")
    tiles = picture(0)
    assert cache.match(tiles, NAMESPACE) is None
    assert not insert(cache, tiles, mask_of(3))[0]
    # The next image has another object and its detector draws another boundary: another name, the same background.
    assert cache.match(changed(tiles, 3), NAMESPACE) is None
    assert insert(cache, changed(tiles, 3), mask_of(2, 3, 4))[0]
    match = cache.match(changed(tiles, 2, 3), NAMESPACE)
    assert match is not None
    check(match, tiles)


def test_matching_again_within_a_flight_is_no_second_sighting():
    cache = open_cache(admission="second_sighting")
    for _ in range(2):
        with cache.single_flight("name") as flight:
            pass
    assert cache.match(picture(0), NAMESPACE) is None
    with cache.single_flight("name") as flight:
        assert not flight.leader
        assert cache.match(picture(0), NAMESPACE) is None
        assert not insert(cache, picture(0), mask_of(3))[0]
    assert cache.match(picture(0), NAMESPACE) is None
    assert insert(cache, picture(0), mask_of(3))[0]


def test_scrolling_never_gets_in_and_static_streams_do_at_once():
    cache = open_cache(admission="second_sighting")
    for seed in range(5):
        assert cache.match(picture(seed), NAMESPACE) is None
        assert not insert(cache, picture(seed), mask_of(3), session="s")[0]
    assert cache.stats()["refused"] == {"first_sighting": 5}
    cache.declare_static("camera", NAMESPACE)
    assert insert(cache, picture(7), mask_of(3), session="camera")[0]
    other = replace(NAMESPACE, tenant="another")
    assert not insert(cache, picture(8), mask_of(3), other, session="camera")[0]


def test_small_backgrounds_are_not_stored():
    cache = open_cache(min_tiles=30)
    mask = np.zeros(64, bool)
    mask[:29] = True
    assert not insert(cache, picture(0), mask)[0]
    assert cache.stats()["refused"] == {"small": 1}


def test_letterbox_makes_no_background_large():
    cache = open_cache(min_tiles=30, max_object_share=1.0)
    mask, live = np.ones(64, bool), np.ones(64, bool)
    live[:40] = False
    tiles = picture(0)
    key = cache.key(tiles, mask, NAMESPACE)
    assert not cache.insert(key, NAMESPACE, features=features_of(tiles), saved_ms=SAVED, live=live)
    assert not cache.would_store(key, NAMESPACE, live=live)
    assert cache.stats()["refused"] == {"small": 1}
    with pytest.raises(DataError, match="live is"):
        cache.insert(key, NAMESPACE, features=features_of(tiles), saved_ms=SAVED, live=live[:3])


def test_what_could_never_be_served_is_not_stored():
    cache = open_cache(max_object_share=0.6)
    tiles, mask, live = picture(0), np.zeros(64, bool), np.zeros(64, bool)
    # 34 tiles, but 10 of 40 live ones.
    live[:40] = True
    mask[30:] = True
    key = cache.key(tiles, mask, NAMESPACE)
    assert not cache.insert(key, NAMESPACE, features=features_of(key.pixels), saved_ms=SAVED, live=live)
    assert cache.stats()["refused"] == {"objects": 1}
    assert cache.stats()["bytes"] == {"host": 0}
    assert not cache.would_store(key, NAMESPACE, live=live)
    mask[24:] = True
    key = cache.key(tiles, mask, NAMESPACE)
    assert cache.would_store(key, NAMESPACE, live=live)
    assert cache.insert(key, NAMESPACE, features=features_of(key.pixels), saved_ms=SAVED, live=live)
    match = cache.match(tiles, NAMESPACE, live=live)
    assert match is not None
    check(match, tiles)


@pytest.mark.parametrize("levels", [("L1",), ("L2",), ("L1", "L2")])
def test_levels_that_are_kept(levels, tmp_path):
    cache = open_cache(levels=list(levels), folder=tmp_path, disk_prefix=True)
    assert insert(cache, picture(0), mask_of(3), prefix_key="p")[0]
    match = cache.match(picture(0), NAMESPACE, prefix_key="p")
    assert match is not None
    assert check(match, picture(0), "p") == Served("L1" in levels, "L2" in levels)
    assert cache.stats()["inserts"] == dict.fromkeys(levels, 1)
    assert len(list((tmp_path / "entries").iterdir())) == len(levels)


def test_floods_of_one_tenant_are_stopped():
    cache = open_cache(tenant_inserts_per_s=2.0, tenant_bytes=40_000)
    other = replace(NAMESPACE, tenant="another")
    insert(cache, picture(100), mask_of(3), other)
    stored = [insert(cache, picture(seed), mask_of(3))[0] for seed in range(30)]
    assert 4 <= sum(stored) < 10
    assert cache.stats()["refused"]["rate"] == 30 - sum(stored)
    assert cache.match(picture(100), other) is not None


def test_static_streams_are_bounded_and_a_living_one_stays():
    streams = StaticStreams(max_streams=3)
    for number in range(20):
        streams.add(("tenant", "kiosk"))
        streams.add(("tenant", f"once {number}"))
    assert ("tenant", "kiosk") in streams
    assert ("tenant", "once 19") in streams
    assert ("tenant", "once 3") not in streams
