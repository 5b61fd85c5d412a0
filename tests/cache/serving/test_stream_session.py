"""Streams: a hit equals a cold run, on every level, and `cache="off"` is no cache."""

from __future__ import annotations

from threading import Barrier, Event, Thread

import numpy as np
import pytest
import torch
from cached_parts import SCREEN_BOX, cached_llava, screens
from PIL import Image

from flmm_detseg.cache.fingerprint import Fingerprints
from flmm_detseg.cache.regions.sources import FrameDifference, GivenRegions, Partitioner
from flmm_detseg.cache.serving.answer import answer
from flmm_detseg.cache.serving.prefill import CacheUse, Stopwatch, prefill
from flmm_detseg.cache.serving.session import StreamSession
from flmm_detseg.compat.transformers5 import tower_body
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.lmms.capture.answer_text import phrase_inputs
from flmm_detseg.store.background_cache import BackgroundCache
from flmm_detseg.store.settings import ApproximateSettings, CacheSettings
from flmm_detseg.structures import CaptureSpec, Phrase, Sample

META = {"objects_xyxy": SCREEN_BOX}
SCHEMES = pytest.mark.parametrize("positions", ["packed", "raster"])


def new_cache(**settings) -> BackgroundCache:
    return BackgroundCache(CacheSettings(**{"min_tiles": 1, "admission": "always", **settings}))


def sample_of(image: np.ndarray, text: str = "a red star ?") -> Sample:
    return Sample("screen", image, "", (), prompt=text, meta=dict(META))


def first_logits(model, sample, use=None, partition=None):
    done = prefill(model, sample, Stopwatch(model.device), use, partition)
    return model.model.lm_head(done.last_state)[0, 0].float(), done


@pytest.mark.case("security/exact")
@SCHEMES
@pytest.mark.parametrize("letterbox", ["background", "drop"])
@pytest.mark.parametrize("projectors", ["shared", "separate"])
def test_hits_equal_cold_runs(positions, letterbox, projectors):
    model = cached_llava(positions=positions, letterbox=letterbox, projectors=projectors)
    # Wide images: the upper and the lower row of patches are padding.
    images = [image[14:42] for image in screens(4)]
    meta = {"objects_xyxy": [[14, 0, 42, 14]]}
    session = StreamSession(model, new_cache())
    levels = []
    for index, image in enumerate(images):
        text = ["a star ?", "the ring of blue on the left ?"][index % 2]
        hit = session.ask(image, text, max_new_tokens=8, meta=meta)
        assert hit.partition.objects.tolist() == [5, 6]
        cold = answer(model, sample_of(image, text), partition=hit.partition, max_new_tokens=8)
        assert hit.token_ids == cold.token_ids
        assert hit.text == cold.text
        assert cold.level == "off"
        levels.append(hit.level)
    assert levels == ["miss", "L2", "L2", "L2"]


@SCHEMES
@pytest.mark.parametrize("level", ["L1", "L2"])
def test_first_logits_of_hits_are_those_of_cold_runs(positions, level):
    model = cached_llava(positions=positions)
    use = CacheUse(new_cache(), session="s")
    first, second = screens(2)
    _, miss = first_logits(model, sample_of(first), use)
    assert miss.level == "miss"
    assert miss.stored
    if level == "L1":
        # Another system text: the prefix differs, the vision features do not.
        model.processor.settings = model.processor.settings.__class__(
            **{**vars(model.processor.settings), "prompt_template": "mistral"}
        )
    hit, done = first_logits(model, sample_of(second), use)
    assert done.level == level
    cold, _ = first_logits(model, sample_of(second), partition=done.item.partition)
    torch.testing.assert_close(hit, cold, rtol=0, atol=1e-4)
    _, again = first_logits(model, sample_of(second), use)
    assert again.level == "L2"


def test_many_images_of_a_stream_answer_as_without_a_cache():
    model = cached_llava()
    session = StreamSession(model, new_cache())
    hits = 0
    for seed in range(3):
        for image in screens(8, seed=seed):
            on = session.ask(image, max_new_tokens=3, meta=META)
            off = session.ask(image, cache="off", max_new_tokens=3, meta=META)
            assert on.token_ids == off.token_ids
            hits += on.level == "L2"
    assert hits == 21


def test_off_neither_reads_nor_writes():
    model, cache = cached_llava(), new_cache()
    session = StreamSession(model, cache)
    image = screens(1)[0]
    before = cache.stats()
    answers = [session.ask(image, cache="off", max_new_tokens=4, meta=META) for _ in range(2)]
    without = StreamSession(model, None).ask(image, max_new_tokens=4, meta=META)
    assert cache.stats() == before
    assert [item.level for item in (*answers, without)] == ["off"] * 3
    assert len({item.token_ids for item in (*answers, without)}) == 1
    assert session.ask(image, max_new_tokens=4, meta=META).level == "miss"
    assert session.ask(image, max_new_tokens=4, meta=META).level == "L2"
    with pytest.raises(ConfigError, match="on, exact, off"):
        session.ask(image, cache="maybe")


def test_stored_tensors_survive_many_answers_unchanged():
    model, cache = cached_llava(), new_cache()
    session = StreamSession(model, cache, session_id="s")
    images = screens(3)
    session.ask(images[0], max_new_tokens=4, meta=META)
    use = CacheUse(cache, session="s")
    _, done = first_logits(model, sample_of(images[1]), use)
    stored = [*done.match.prefix.keys, *done.match.prefix.values, done.match.features]
    copies = [tensor.clone() for tensor in stored]
    for image in images:
        session.ask(image, "another ?", max_new_tokens=9, capture=CaptureSpec(attention=True, hidden="all"))
    assert all(torch.equal(a, b) for a, b in zip(stored, copies, strict=True))


def test_no_detector_runs_on_a_hit():
    class Counting(GivenRegions):
        calls = 0

        def find(self, sample):
            Counting.calls += 1
            return super().find(sample)

    model = cached_llava(partitioner=Partitioner(Counting("meta"), dilate=0))
    session = StreamSession(model, new_cache())
    levels = [session.ask(image, max_new_tokens=1, meta=META).level for image in screens(3)]
    assert levels == ["miss", "L2", "L2"]
    assert Counting.calls == 1


def test_text_comes_piece_by_piece():
    model = cached_llava()
    session = StreamSession(model, new_cache())
    image = screens(1)[0]
    pieces: list[str] = []
    found = session.ask(image, max_new_tokens=8, meta=META, on_text=pieces.append)
    assert "".join(pieces).strip() == found.text
    assert len(pieces) > 1
    stream, streamed = session.stream(image, max_new_tokens=8, meta=META), []
    while True:
        try:
            streamed.append(next(stream))
            assert torch.is_grad_enabled()
        except StopIteration as end:
            last = end.value
            break
    assert streamed == pieces
    assert last.token_ids == found.token_ids
    assert last.level == "L2"
    with pytest.raises(ConfigError, match="max_new_tokens"):
        session.ask(image, max_new_tokens=0)


def test_milliseconds_name_what_was_done():
    session = StreamSession(cached_llava(), new_cache())
    miss, hit = (session.ask(image, max_new_tokens=2, meta=META).milliseconds for image in screens(2))
    off = session.ask(screens(1)[0], cache="off", max_new_tokens=2, meta=META).milliseconds
    assert set(miss) - set(hit) == {"detect", "prefix", "insert"}
    assert set(hit) == {"prepare", "match", "vision", "suffix", "first_token", "total"}
    assert set(off) == {"prepare", "detect", "vision", "prefix", "suffix", "first_token", "total"}
    for found in (miss, hit, off):
        parts = sum(value for name, value in found.items() if name not in ("first_token", "total"))
        assert parts <= found["first_token"] * 1.001 <= found["total"] * 1.002


def test_phrases_of_a_hit_are_grounded_as_in_a_cold_run():
    model = cached_llava(letterbox="drop")
    session = StreamSession(model, new_cache())
    capture = CaptureSpec(attention=True, hidden="all")
    images, meta = [image[14:42] for image in screens(2)], {"objects_xyxy": [[14, 0, 42, 14]]}
    session.ask(images[0], max_new_tokens=2, meta=meta)
    hit = session.ask(images[1], max_new_tokens=8, meta=meta, capture=capture)
    assert hit.level == "L2"
    spans = [span for span in hit.generation.token_offsets if hit.text[slice(*span)].strip()]
    phrases = [Phrase((spans[0],)), Phrase(((spans[1][0], spans[2][1]),))]
    ours = model.states_of_phrases(hit.generation, phrases)
    with torch.no_grad():
        theirs = model.encode([phrase_inputs(hit.generation, phrases)], capture)
    torch.testing.assert_close(ours.attention[0], theirs.attention[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.hidden[0].states, theirs.hidden[0].states, rtol=1e-5, atol=5e-5)
    # Two rows of the 4 x 4 grid are padding and get no attention.
    assert (ours.attention[0][:, :, [0, 3]] == 0).all()
    assert (ours.attention[0][:, :, [1, 2]] > 0).all()


def test_tenants_share_nothing():
    model, cache = cached_llava(), new_cache()
    image = screens(1)[0]
    for tenant in ("a", "b"):
        session = StreamSession(model, cache, tenant=tenant)
        assert [session.ask(image, max_new_tokens=1, meta=META).level for _ in range(2)] == ["miss", "L2"]


def test_everything_an_entry_depends_on_is_in_its_fingerprint():
    model = cached_llava(frozen=False, lora=dict(llm=dict(r=2, alpha=4), vision=dict(r=2, alpha=4))).eval()
    prints = model.fingerprints
    base = prints.namespace("t")
    assert prints.namespace("t") == base == Fingerprints(model).namespace("t")

    def change(part, only_llm):
        nonlocal base
        with torch.no_grad():
            part.add_(1e-3)
        now = prints.namespace("t")
        assert now.llm_fp != base.llm_fp
        assert (now.vision_fp == base.vision_fp) == only_llm
        base = now

    change(model.separators, True)
    change(model.model.model.multi_modal_projector.linear_1.bias, True)
    change(dict(model.named_parameters())["model.model.language_model.layers.1.mlp.up_proj.weight"], True)
    vision = [p for name, p in model.named_parameters() if "vision_tower" in name and "lora_B" in name]
    change(vision[0], False)
    with model.lmm.base_mode():
        assert prints.namespace("t").vision_fp != base.vision_fp
    assert prints.namespace("t") == base
    # Written past the version counters: training mode computes the fingerprints anew.
    model.separators.data.add_(1)
    model.train().eval()
    assert prints.namespace("t") != base
    assert cached_llava().fingerprints.namespace("t") != base


def test_changed_weights_never_use_old_entries():
    model, cache = cached_llava(), new_cache()
    session = StreamSession(model, cache)
    image = screens(1)[0]
    assert [session.ask(image, max_new_tokens=1, meta=META).level for _ in range(2)] == ["miss", "L2"]
    with torch.no_grad():
        model.separators.add_(0.1)
    assert session.ask(image, max_new_tokens=1, meta=META).level == "L1"
    with torch.no_grad():
        tower_body(model.model.model.vision_tower).embeddings.class_embedding.add_(0.1)
    assert session.ask(image, max_new_tokens=1, meta=META).level == "miss"


def test_frame_difference_finds_the_clock_without_a_detector():
    model = cached_llava(partitioner=Partitioner(FrameDifference(), dilate=0))
    session = StreamSession(model, new_cache())
    found = [session.ask(image, max_new_tokens=2) for image in screens(4)]
    # The first image is all background; the second shows what changes; from then on it is a hit.
    assert [item.level for item in found] == ["miss", "miss", "L2", "L2"]
    assert found[2].partition.objects.tolist() == [5, 6]


def test_noisy_image_uses_a_near_background_and_recomputes_changed_patches():
    approximate = ApproximateSettings(tau=4, share=0.2, edge_density=2.0, shadow_rate=1.0)
    model, cache = cached_llava(), new_cache(approximate=approximate)
    session = StreamSession(model, cache)
    first, second = screens(2)
    session.ask(first, max_new_tokens=4, meta=META)
    noisy = second.copy()
    noisy[:14, :14] ^= 1
    noisy[42:, 42:] = 255 - noisy[42:, 42:]
    found = session.ask(noisy, max_new_tokens=4, meta=META)
    assert found.level == "L3"
    assert found.num_stale == 1
    checks = cache.stats()["shadow"]
    assert sum(checks.values()) == 1
    exact = session.ask(noisy, max_new_tokens=4, meta=META, cache="exact")
    assert (exact.level, exact.num_stale) == ("miss", 0)


def test_an_approximate_answer_that_is_not_read_to_its_end_is_checked_too(monkeypatch):
    approximate = ApproximateSettings(tau=4, share=0.2, edge_density=2.0, shadow_rate=1.0)
    model, cache = cached_llava(), new_cache(approximate=approximate)
    session = StreamSession(model, cache)
    first, second = screens(2)
    session.ask(first, max_new_tokens=4, meta=META)
    second[:14, :14] ^= 1
    checked = []
    monkeypatch.setattr(cache, "spot_check", lambda match, agrees: checked.append((match.served, agrees())))
    reading = session.stream(second, max_new_tokens=8, meta=META)
    assert next(reading)
    reading.close()
    ((level, agreed),) = checked
    assert level == "L3"
    assert isinstance(agreed, bool)
    # Nothing was read, and nothing was computed: nothing to check.
    session.stream(second, max_new_tokens=8, meta=META).close()
    assert len(checked) == 1


def test_threads_with_one_background_compute_it_once(monkeypatch):
    model, cache = cached_llava(), new_cache()
    images = screens(4)
    answers: list = [None] * 4
    missed, flights, waiting = Barrier(4, timeout=60), [], Event()
    find, features, single_flight = model.partitioner.source.find, model.group_features, cache.single_flight

    def find_together(sample):
        missed.wait()
        return find(sample)

    def counted_flight(name):
        flights.append(name)
        if len(flights) == 4:
            waiting.set()
        return single_flight(name)

    def slow_features(*arguments):
        # The leader computes when all others stand in line.
        assert waiting.wait(60)
        return features(*arguments)

    monkeypatch.setattr(model.partitioner.source, "find", find_together)
    monkeypatch.setattr(model, "group_features", slow_features)
    monkeypatch.setattr(cache, "single_flight", counted_flight)

    def work(index: int) -> None:
        session = StreamSession(model, cache)
        answers[index] = session.ask(images[index], max_new_tokens=3, meta=META)

    threads = [Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(item.level for item in answers) == ["L2", "L2", "L2", "miss"]
    assert len(set(flights)) == 1
    for image, found in zip(images, answers, strict=True):
        cold = answer(model, sample_of_default(image), partition=found.partition, max_new_tokens=3)
        assert found.token_ids == cold.token_ids


def sample_of_default(image: np.ndarray) -> Sample:
    return Sample("screen", image, "", (), meta=dict(META))


def test_all_objects_is_served_and_nothing_is_stored():
    model, cache = cached_llava(), new_cache()
    session = StreamSession(model, cache)
    everything = {"objects_xyxy": [[0, 0, 56, 56]]}
    found = [session.ask(screens(1)[0], max_new_tokens=2, meta=everything) for _ in range(2)]
    assert [item.level for item in found] == ["miss", "miss"]
    assert found[0].entry_id is None
    with pytest.raises(DataError, match="given meta"):
        session.ask(screens(1, seed=5)[0], max_new_tokens=2)


def test_given_groups_do_not_go_with_a_cache():
    model = cached_llava()
    sample = sample_of(screens(1)[0])
    partition = model.prepare(sample).partition
    with pytest.raises(ConfigError, match="without a cache"):
        answer(model, sample, use=CacheUse(new_cache()), partition=partition)


def test_images_of_every_form_are_read_and_others_are_named(tmp_path):
    model, pixels = cached_llava().eval(), screens(1)[0]
    session = StreamSession(model, None)
    path = tmp_path / "screen.png"
    Image.fromarray(pixels).save(path)
    wanted = session.ask(pixels, "what ?", max_new_tokens=3, meta=META).token_ids
    for image in (path, str(path), Image.open(path)):
        assert session.ask(image, "what ?", max_new_tokens=3, meta=META).token_ids == wanted
    for wrong in (None, pixels[..., 0], pixels / 255, tmp_path / "none.png", Image.new("I", (8, 8)), b"png"):
        with pytest.raises(DataError):
            session.ask(wrong, "what ?")
        with pytest.raises(DataError):
            next(session.stream(wrong, "what ?"))
