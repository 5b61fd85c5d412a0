"""What a request is counted as, what it stores as its worth, and for whom it waits."""

from __future__ import annotations

import time
from dataclasses import replace
from threading import Barrier, Event, Thread

import pytest
from cached_parts import SCREEN_BOX, cached_llava, screens

from flmm_detseg.cache.reading.layout import NUM_SEPARATORS
from flmm_detseg.cache.serving.session import StreamSession
from flmm_detseg.store.background_cache import BackgroundCache
from flmm_detseg.store.settings import ApproximateSettings, CacheSettings
from flmm_detseg.structures import Sample

META = {"objects_xyxy": SCREEN_BOX}


def new_cache(**settings) -> BackgroundCache:
    return BackgroundCache(CacheSettings(**{"min_tiles": 1, **settings}))


def in_threads(work, count: int) -> None:
    threads = [Thread(target=work, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_request_is_counted_once():
    model, cache = cached_llava(), new_cache()
    session = StreamSession(model, cache)
    image = screens(1)[0]
    levels = [session.ask(image, max_new_tokens=1, meta=META).level for _ in range(4)]
    assert levels == ["miss", "miss", "L2", "L2"]
    stats = cache.stats()
    assert stats["requests"] == {"miss": 2, "L2": 2}
    assert "| hit rate | all levels | 0.500 |" in cache.stats_table()
    # The second miss was the first to be worth waiting for.
    assert stats["flights"] == {"led": 1}


@pytest.mark.parametrize("admission", ["always", "second_sighting"])
def test_requests_of_threads_are_counted_once(monkeypatch, admission):
    model, cache = cached_llava(), new_cache(admission=admission)
    missed, find = Barrier(4, timeout=60), model.partitioner.source.find

    def find_together(sample):
        missed.wait()
        return find(sample)

    monkeypatch.setattr(model.partitioner.source, "find", find_together)
    images, levels = screens(4), [""] * 4

    def work(index: int) -> None:
        session = StreamSession(model, cache)
        levels[index] = session.ask(images[index], max_new_tokens=1, meta=META).level

    in_threads(work, 4)
    # Whoever waits is a further sighting: what the first one computes is stored.
    assert sorted(levels) == ["L2", "L2", "L2", "miss"]
    assert cache.stats()["requests"] == {"miss": 1, "L2": 3}


def test_entry_without_room_for_its_changed_patches_is_no_hit():
    first, second = screens(2)
    noisy = second.copy()
    noisy[42:, 42:] = 255 - noisy[42:, 42:]
    approximate = ApproximateSettings(tau=4, share=0.5, edge_density=2.0, shadow_rate=0.0)
    for room, level in [(1, "L3"), (0, "miss")]:
        model, cache = cached_llava(), new_cache(admission="always", approximate=approximate)
        session = StreamSession(model, cache)
        text = "a red star ?"
        item = model.prepare_text(Sample("screen", first, "", (), prompt=text))
        model.layout = replace(model.layout, max_length=len(item.input_ids) + NUM_SEPARATORS + room)
        session.ask(first, text, max_new_tokens=1, meta=META)
        assert session.ask(noisy, text, max_new_tokens=1, meta=META).level == level
        assert sum(cache.stats()["requests"].values()) == 2
        assert cache.stats()["requests"]["miss"] == (1 if room else 2)


def test_prefix_is_worth_the_same_whether_its_features_were_stored(tmp_path):
    model, image = cached_llava(), screens(1)[0]
    features = new_cache(admission="always", levels=("L1",), folder=tmp_path)
    assert StreamSession(model, features).ask(image, max_new_tokens=1, meta=META).level == "miss"
    (unit,) = features._tiers.memory["host"]._units.values()
    features.close()
    cache = new_cache(admission="always", folder=tmp_path)
    session = StreamSession(model, cache)
    found = session.ask(image, max_new_tokens=1, meta=META)
    assert found.level == "L1"
    hit = session.ask(image, max_new_tokens=1, meta=META)
    assert hit.level == "L2"
    # It saves the features' time and its own.
    wanted = unit.saved_ms + found.milliseconds["prefix"]
    assert cache.stats()["saved_ms"]["L2"] == pytest.approx(wanted)
    assert cache.stats()["saved_ms"]["L1"] == pytest.approx(unit.saved_ms)


def test_features_alone_are_never_made_a_prefix():
    model, cache = cached_llava(), new_cache(admission="always", levels=("L1",))
    session = StreamSession(model, cache)
    found = [session.ask(image, max_new_tokens=1, meta=META) for image in screens(3)]
    assert [item.level for item in found] == ["miss", "L1", "L1"]
    assert [item.stored for item in found] == [True, False, False]
    assert cache.stats()["values"] == {"host": 1}


def test_nobody_waits_for_what_will_not_be_stored(monkeypatch):
    model, cache = cached_llava(), new_cache(admission="second_sighting")
    flights, enter = [], cache.single_flight

    def counted(name):
        flights.append(name)
        return enter(name)

    monkeypatch.setattr(cache, "single_flight", counted)
    images = screens(3)
    for image, number in zip(images, [0, 1, 1], strict=True):
        StreamSession(model, cache).ask(image, max_new_tokens=1, meta=META)
        assert len(flights) == number
    # Nearly everything is an object: never stored, so never waited for.
    most = {"objects_xyxy": [[0, 0, 56, 50]]}
    for image in screens(2, seed=5):
        StreamSession(model, cache).ask(image, max_new_tokens=1, meta=most)
    assert len(flights) == 1


def test_threads_with_stored_features_compute_the_prefix_once(monkeypatch, tmp_path):
    model, images = cached_llava(), screens(5)
    features = new_cache(admission="always", levels=("L1",), folder=tmp_path)
    StreamSession(model, features).ask(images[0], max_new_tokens=1, meta=META)
    features.close()
    cache = new_cache(admission="always", folder=tmp_path)
    matched, computed, waiting, entered = Barrier(4, timeout=60), [], Event(), []
    flight, prefix = cache.single_flight, model.prefix_embeds

    def flight_together(name):
        matched.wait()
        entered.append(name)
        if len(entered) == 4:
            waiting.set()
        return flight(name)

    def slow_prefix(*arguments):
        computed.append(1)
        assert waiting.wait(60)
        time.sleep(0.05)
        return prefix(*arguments)

    monkeypatch.setattr(cache, "single_flight", flight_together)
    monkeypatch.setattr(model, "prefix_embeds", slow_prefix)
    levels = [""] * 4

    def work(index: int) -> None:
        session = StreamSession(model, cache)
        levels[index] = session.ask(images[1 + index], max_new_tokens=1, meta=META).level

    in_threads(work, 4)
    assert sorted(levels) == ["L1", "L2", "L2", "L2"]
    assert len(computed) == 1
    assert cache.stats()["requests"] == {"L1": 1, "L2": 3}
