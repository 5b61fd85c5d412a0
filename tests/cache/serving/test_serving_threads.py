"""Threads and tenants beside a request: it sees one state of the model, and no tenant reaches another's images."""

from __future__ import annotations

from threading import Event, Thread
from types import SimpleNamespace

import pytest
import torch
from cached_parts import SCREEN_BOX, cached_llava, screens

from flmm_detseg.cache.regions.sources import FrameDifference, Partitioner
from flmm_detseg.cache.serving.answer import answer
from flmm_detseg.cache.serving.batch import prefill_together
from flmm_detseg.cache.serving.prefill import CacheUse, Stopwatch
from flmm_detseg.cache.serving.session import StreamSession
from flmm_detseg.errors import ConfigError
from flmm_detseg.store.background_cache import BackgroundCache
from flmm_detseg.store.settings import CacheSettings
from flmm_detseg.structures import CaptureSpec, Sample

META = {"objects_xyxy": SCREEN_BOX}


def new_cache() -> BackgroundCache:
    return BackgroundCache(CacheSettings(min_tiles=1, admission="always"))


def lora_model(**arguments):
    """LoRA that says something, also about the first token."""
    lora = dict(llm=dict(r=2, alpha=32), vision=dict(r=2, alpha=32))
    model = cached_llava(frozen=False, lora=lora, **arguments).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator))
    return model


def ask(session: StreamSession, image, **arguments):
    return session.ask(image, max_new_tokens=6, meta=META, **arguments)


def cold(model, image, found):
    sample = Sample("cold", image, "", ())
    return answer(model, sample, partition=found.partition, max_new_tokens=6).token_ids


def started(work) -> Thread:
    thread = Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("part", ["prompt", "token"])
def test_base_mode_waits_for_a_request_and_changes_nothing_of_it(monkeypatch, part):
    model, entered, found = lora_model(), Event(), []
    session, (first, second) = StreamSession(model, new_cache()), screens(2)
    owner, name = (model, "group_features") if part == "prompt" else (model.model.lm_head, "forward")
    computing, go_on, compute = Event(), Event(), getattr(owner, name)

    def slow(*arguments):
        computing.set()
        assert go_on.wait(60)
        return compute(*arguments)

    def base() -> None:
        with model.base_mode():
            entered.set()

    monkeypatch.setattr(owner, name, slow)
    asking = started(lambda: found.append(ask(session, first)))
    assert computing.wait(60)
    switching = started(base)
    # Long enough for a thread that does not wait.
    entered_within = entered.wait(0.5)
    go_on.set()
    asking.join(60)
    switching.join(60)
    assert not entered_within
    assert entered.is_set()
    monkeypatch.undo()
    assert found[0].stored
    assert found[0].token_ids == cold(model, first, found[0])
    hit = ask(session, second)
    assert hit.level == "L2"
    assert hit.token_ids == cold(model, second, hit)


def test_a_request_waits_for_base_mode():
    model = lora_model()
    session, (first, second) = StreamSession(model, new_cache()), screens(2)
    ask(session, first)
    found, left = [], Event()

    def work() -> None:
        found.append((ask(session, second), left.is_set()))

    with model.base_mode():
        asking = started(work)
        asking.join(0.5)
        left.set()
    asking.join(60)
    hit, waited = found[0]
    assert waited
    assert hit.level == "L2"
    assert hit.token_ids == cold(model, second, hit)


def test_others_may_switch_between_the_tokens_of_an_answer():
    model = lora_model()
    session, image = StreamSession(model, new_cache()), screens(1)[0]
    wanted = ask(session, image).token_ids
    stream, switched = session.stream(image, max_new_tokens=6, meta=META), 0

    def base() -> None:
        with model.base_mode():
            pass

    found = None
    while found is None:
        try:
            next(stream)
        except StopIteration as end:
            found = end.value
        else:
            switching = started(base)
            switching.join(60)
            switched += not switching.is_alive()
    assert found.token_ids == wanted
    assert switched > 1


def test_weights_that_change_within_a_request_are_not_stored(monkeypatch):
    model = cached_llava()
    session, (first, second) = StreamSession(model, new_cache()), screens(2)
    find = model.partitioner.source.find

    def changing(sample):
        with torch.no_grad():
            model.separators.add_(1)
        return find(sample)

    monkeypatch.setattr(model.partitioner, "source", SimpleNamespace(name="changing", find=changing))
    found = ask(session, first)
    monkeypatch.undo()
    assert (found.level, found.stored) == ("miss", False)
    assert found.token_ids == cold(model, first, found)
    assert session.cache.stats()["bytes"]["host"] == 0
    again = [ask(session, image) for image in (first, second)]
    assert [(item.level, item.stored) for item in again] == [("miss", True), ("L2", False)]
    assert again[1].token_ids == cold(model, second, again[1])


def test_what_was_found_for_another_model_is_not_used(monkeypatch):
    model, cache = lora_model(), new_cache()
    session, (first, second) = StreamSession(model, cache), screens(2)
    ask(session, first)
    before = ask(session, second)
    match = cache.match

    def merging(*arguments, **settings):
        found = match(*arguments, **settings)
        model.merge_lora()
        for parameter in model.lmm.model.model.language_model.layers[0].parameters():
            parameter.data.mul_(-1)
        model.train().eval()
        return found

    monkeypatch.setattr(cache, "match", merging)
    found = ask(session, second)
    monkeypatch.undo()
    assert (before.level, found.level, found.stored) == ("L2", "miss", False)
    assert found.token_ids == cold(model, second, found) != before.token_ids


def test_batches_do_not_use_what_was_found_for_another_model(monkeypatch):
    model, cache = cached_llava(), new_cache()
    first, *images = screens(3)
    use, watch = CacheUse(cache), Stopwatch(model.device)
    samples = [Sample("s", image, "", (), meta=dict(META)) for image in (first, *images)]
    assert [done.level for done in prefill_together(model, samples, watch, use)] == ["miss", "L2", "L2"]
    match, calls = cache.match, []

    def changing(*arguments, **settings):
        found = match(*arguments, **settings)
        calls.append(1)
        if len(calls) == 2:
            with torch.no_grad():
                model.separators.add_(1)
        return found

    monkeypatch.setattr(cache, "match", changing)
    found = prefill_together(model, samples[1:], watch, use)
    monkeypatch.undo()
    assert [done.level for done in found] == ["miss", "miss"]
    for image, done in zip(images, found, strict=True):
        sample = Sample("cold", image, "", ())
        wanted = answer(model, sample, partition=done.item.partition, max_new_tokens=1).token_ids
        assert int(model.model.lm_head(done.last_state).argmax()) == wanted[0]


def test_phrases_are_grounded_in_threads():
    model, cache = cached_llava(), new_cache()
    capture = CaptureSpec(attention=True, hidden="all")
    images = screens(6)
    wanted = [ask(StreamSession(model, None), image, capture=capture).generation for image in images]
    found: dict[int, list] = {}

    def work(number: int) -> None:
        session = StreamSession(model, cache)
        mine = images[2 * number : 2 * number + 2]
        found[number] = [ask(session, image, capture=capture).generation for image in mine]

    threads = [started(lambda number=number: work(number)) for number in range(3)]
    for thread in threads:
        thread.join(120)
    ours = [generation for number in range(3) for generation in found[number]]
    for one, other in zip(ours, wanted, strict=True):
        assert torch.equal(one.token_ids, other.token_ids)
        torch.testing.assert_close(one.hidden, other.hidden, rtol=0, atol=1e-5)
        torch.testing.assert_close(one.attention, other.attention, rtol=0, atol=1e-5)


def difference_model():
    return cached_llava(partitioner=Partitioner(FrameDifference(), dilate=0))


def objects(session: StreamSession, image, **arguments) -> list[int]:
    return session.ask(image, max_new_tokens=1, **arguments).partition.objects.tolist()


@pytest.mark.parametrize("meta", [None, {"session": ("alice", "camera-1")}])
def test_tenants_with_one_session_name_share_no_frames(meta):
    model, cache = difference_model(), new_cache()
    first, second, third = screens(3)
    alice, bob = (
        StreamSession(model, cache, tenant=tenant, session_id="camera-1") for tenant in ("alice", "bob")
    )
    assert objects(alice, first) == []
    assert objects(bob, second, meta=meta) == []
    assert objects(bob, third, meta=meta, cache="off") == []
    # What changed since their own first image.
    assert objects(alice, third) == [5, 6]


def test_callers_cannot_name_another_stream():
    model, cache = difference_model(), new_cache()
    first, second = screens(2)
    one, two = (StreamSession(model, cache, session_id=name) for name in ("one", "two"))
    objects(one, first, meta={"session": "two"})
    assert objects(two, second) == []


def test_off_leaves_the_frames_of_the_stream_alone():
    model = difference_model()
    first, second, third = screens(3)
    session = StreamSession(model, new_cache(), session_id="s")
    assert [objects(session, image, cache="off") for image in (first, second)] == [[], [5, 6]]
    # For the cached stream these are the first two images.
    assert [objects(session, image) for image in (second, third)] == [[], [5, 6]]


def test_images_without_a_stream_are_not_remembered():
    source = FrameDifference()
    first, second = screens(2)
    for image in (first, second):
        assert not source.find(Sample("one", image, "", ())).mask.any()
    assert not source._streams
    model, cache = difference_model(), new_cache()
    for image in (first, second):
        done = answer(model, Sample("one", image, "", ()), use=CacheUse(cache), max_new_tokens=1)
        assert done.partition.objects.tolist() == []


def test_a_cache_needs_eval_mode_also_in_batches():
    model = lora_model().train()
    with pytest.raises(ConfigError, match="eval mode"):
        prefill_together(
            model,
            [Sample("s", screens(1)[0], "", (), meta=dict(META))],
            Stopwatch(model.device),
            CacheUse(new_cache()),
        )
