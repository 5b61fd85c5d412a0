"""The benchmarks of the cache: they run, their baselines are what they say, and a wrong cache is noticed."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from flmm_detseg.cache import BackgroundCache, CacheSettings, HFDetector
from flmm_detseg.cache.reading.prompt_parts import image_span
from flmm_detseg.datasets.tinyworld.streams import make_stream
from flmm_detseg.inference.streaming import stream_from_config
from flmm_detseg.lmms.capture.decoder import PrefixDecoder
from flmm_detseg.store.keys import cut_tiles
from flmm_detseg.structures import Sample

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.chdir(ROOT)
    return importlib.import_module


def last_line(module: ModuleType, arguments: list[str], monkeypatch, capsys, code: int = 0) -> dict:
    monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
    with pytest.raises(SystemExit) as stop:
        module.run_tool(module.main)
    assert stop.value.code == code
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.long
def test_exactness_finds_no_difference(load, monkeypatch, capsys):
    figures = last_line(load("cache_exactness"), ["--items", "48", "--frames", "8"], monkeypatch, capsys)
    for level in ("L1", "L2"):
        assert figures["levels"][level]["items"] > 5
        assert figures["levels"][level]["different_tokens"] == 0
        assert figures["levels"][level]["max_logit_difference"] <= 1e-4
    rates = {row["stream"]: row["hit_rate"] for row in figures["streams"]}
    assert rates["camera/png"] > 0
    assert rates["scroll/png"] == 0


@pytest.mark.long
def test_texts_are_found_and_make_the_first_repeat_hit(load, monkeypatch, capsys):
    pytest.importorskip("rapidocr", reason="requirements/ocr.txt is not installed")
    arguments = ["--streams", "2", "--frames", "8", "--scales", "2"]
    figures = last_line(load("cache_texts"), arguments, monkeypatch, capsys)
    found = next(row for row in figures["finding"] if not row["read"])
    assert found["clock"] == 1
    assert found["score"] > 0.8
    rows = {row["source"]: row for row in figures["rows"]}
    assert rows["none"]["L2 hits"] == 0
    assert rows["given"]["L2 hits"] > 0
    assert rows["given"]["patches computed"] < rows["none"]["patches computed"]
    assert rows["texts"]["source's ms of a miss"] > rows["none"]["source's ms of a miss"]
    for row in rows.values():
        low, high = row["L2 interval"]
        assert low <= row["L2 hits"] <= high


@pytest.mark.long
def test_exactness_notices_wrong_features(load, monkeypatch, capsys):
    module = load("cache_exactness")

    class Wrong(BackgroundCache):
        def insert(self, key, namespace, *, features, prefix, prefix_key, saved_ms, session, live):
            # The one that keeps features only.
            if features is not None and self.settings.levels == ("L1",):
                features = 1.02 * features
            return super().insert(
                key, namespace, features=features, prefix=prefix, prefix_key=prefix_key, saved_ms=saved_ms,
                session=session, live=live,
            )  # fmt: skip

    monkeypatch.setattr(module, "BackgroundCache", Wrong)
    figures = last_line(module, ["--items", "48", "--frames", "8"], monkeypatch, capsys, code=2)
    assert any(problem.startswith("L1") for problem in figures["problems"])
    assert figures["levels"]["L2"]["max_logit_difference"] <= 1e-4


def test_baselines_are_the_unmodified_llava(load):
    ttft, ways = load("ttft"), load("ttft_ways")
    model = stream_from_config(ttft.CONFIG, untrained=True)[0].model
    exact, first_k = ways.ExactImage(model), ways.FirstK(model, num_tokens=model.layout.num_patches)
    # Squares have no letterbox.
    all_ways = [
        ways.Unmodified(model),
        ways.Unmodified(model, drop_letterbox=True),
        exact,
        exact,
        first_k,
        first_k,
    ]
    cached = ways.Split(model, None, ways.NO_CACHE)
    labels = []
    for item in make_stream("camera", 1, 0, 3):
        sample = Sample(item.stream, item.image, "", (), prompt=item.question)
        with model.base_mode():
            wanted = model.generate(sample, max_new_tokens=12)
        for way in all_ways:
            done = ttft.request(way, sample, "camera", 0, session="s", answer=wanted.strip())
            assert done.right, done.label
            labels.append(done.label)
        # First frames are sent whole.
        cached(sample, ways.Clocks(model.device), "s")
        done = ttft.request(
            ways.Pruned(model, cached), sample, "camera", 0, session="s", answer=wanted.strip()
        )
        assert (done.label, done.right) == ("EVS-style pruning, first frame", True)
    assert {"exact-image cache, hit", "exact-image cache, miss", "first-k recompute, reuse"} <= set(labels)


def test_pruning_sends_what_changed_at_its_own_positions(load, monkeypatch):
    ttft, ways = load("ttft"), load("ttft_ways")
    model = stream_from_config(ttft.CONFIG, untrained=True)[0].model
    cached = ways.Split(model, BackgroundCache(CacheSettings(min_tiles=20, admission="always")), ways.FULL)
    pruned, seen = ways.Pruned(model, cached), []
    feed = PrefixDecoder.feed
    monkeypatch.setattr(
        PrefixDecoder, "feed", lambda self, *given: (seen.append(given[1]), feed(self, *given))[1]
    )
    hits = 0
    before = None
    for item in make_stream("camera", 1, 0, 8):
        sample = Sample(item.stream, item.image, "", (), prompt=item.question, meta={"session": "c"})
        hit = cached(sample, ways.Clocks(model.device), "c")
        done = ttft.request(pruned, sample, "camera", 0, session="c", max_new_tokens=1)
        text = model.prepare_text(sample)
        start, end = image_span(text)
        tiles = cut_tiles(model.processor.denormalise(text.pixel_values), model.patch_size)
        sent = np.zeros(len(tiles), bool)
        sent[cached.sent_anew(sample)] = True
        if before is not None:
            sent |= (tiles != before).any(1)
        else:
            sent[:] = True
        before = tiles
        wanted = [*range(start), *(start + np.flatnonzero(sent)), *range(end, len(text.input_ids))]
        assert seen[-1].tolist() == wanted
        assert done.new_tokens == len(wanted)
        if hit.label == "hit L2":
            hits += 1
            # As many image tokens as the cached way, which also reads two separators but no system text.
            assert done.new_tokens - start == hit.new_tokens - 2
            assert done.new_tokens < len(text.input_ids)
    assert hits > 2


def test_random_detector_takes_its_time_and_says_nothing(load, monkeypatch):
    detectors = load("ttft_detectors")
    seen = []
    find = HFDetector.find
    monkeypatch.setattr(HFDetector, "find", lambda self, sample: (seen.append(sample), find(self, sample))[1])
    source = detectors.partitioner("rtdetr", dilate=0, small=True).source
    assert "random weights: time only" in source.name
    meta = {"objects_xyxy": [[1, 2, 30, 40]]}
    sample = Sample("one", np.zeros((56, 56, 3), np.uint8), "", (), prompt="a", meta=meta)
    assert source.find(sample).boxes_xyxy.tolist() == meta["objects_xyxy"]
    assert [one is sample for one in seen] == [True]


@pytest.mark.parametrize("detector", ["difference", "rtdetr", "boxes"])
def test_every_detector_gives_the_misses_their_share(load, monkeypatch, capsys, tmp_path, detector):
    arguments = ["--quick", "--width", "7b", "--cases", "f=0.8", "portrait f=0.8", "--detector", detector]
    out = ["--out", str(tmp_path / "c.png"), "--all-requests"]
    figures = last_line(load("ttft"), arguments + out, monkeypatch, capsys)
    assert ("random weights: time only" in figures["detector"]) == (detector == "rtdetr")
    for case in ("f=0.8", "portrait f=0.8"):
        rows = {row["way"]: row for row in figures["rows"] if row["case"] == case}
        hit, miss = rows["hit L2"], rows["miss"]
        assert hit["new_tokens_p50"] == rows["EVS-style pruning"]["new_tokens_p50"] - 1
        assert hit["new_tokens_p50"] < 0.3 * miss["new_tokens_p50"]
        assert hit["parts_wall_ms"]["detect"] == 0 < miss["parts_wall_ms"]["detect"]


def test_the_unmodified_model_in_a_batch_is_unmodified(load):
    ttft, ways, batches = load("ttft"), load("ttft_ways"), load("ttft_batches")
    model = stream_from_config(ttft.CONFIG, untrained=True)[0].model
    samples = [
        Sample(item.stream, item.image, "", (), prompt=item.question)
        for kind in ("screen", "camera")
        for item in make_stream(kind, 1, 0, 3)
    ]
    with torch.no_grad():
        last, tokens = batches.unmodified_together(model, samples, ways.Clocks(model.device))
        alone = [ways.Unmodified(model)(sample, ways.Clocks(model.device), "") for sample in samples]
    assert len(set(tokens)) > 1
    assert tokens == [(done.new_tokens, 0) for done in alone]
    wanted = torch.cat([done.last_state for done in alone])
    torch.testing.assert_close(last, wanted, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("width", ["tiny", "7b"])
def test_batches_of_hits(load, monkeypatch, capsys, width):
    arguments = ["--quick", "--width", width, "--cases", "f=0.8", "--batch", "1", "3"]
    figures = last_line(load("ttft"), arguments, monkeypatch, capsys)
    cases = ["f=0.8"] if width == "7b" else ["screen", "camera", "slides"]
    assert [(row["case"], row["batch"]) for row in figures["rows"]] == [
        (case, size) for case in cases for size in (1, 3)
    ]
    for row in figures["rows"]:
        assert row["hit_ms_each"] == pytest.approx(row["hit_ms"] / row["batch"], abs=0.02)
        assert 1 < row["ideal_prefill"] < 5
        assert row["parts_hit_wall_ms"]["match"] > 0 == row["parts_stock_wall_ms"]["match"]
        assert row["parts_hit_wall_ms"]["detect"] == 0


def test_a_batch_has_a_question(load, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ttft", "--batch", "0"])
    with pytest.raises(SystemExit):
        load("ttft").main()
    assert "whole numbers from 1 on" in capsys.readouterr().err


@pytest.mark.long
def test_first_tokens_of_all_streams(load, monkeypatch, capsys, tmp_path):
    out = tmp_path / "chart.png"
    figures = last_line(load("ttft"), ["--quick", "--out", str(out)], monkeypatch, capsys)
    assert out.stat().st_size > 10_000
    rows = {(row["case"], row["way"]): row for row in figures["rows"]}
    hit, miss = rows["camera", "hit L2"]["parts_wall_ms"], rows["camera", "miss"]["parts_wall_ms"]
    assert hit["detect"] == hit["insert"] == 0
    assert miss["detect"] > 0
    assert rows["camera", "hit L1"]["requests"] > 0
    assert rows["screen", "stock, no letterbox"]["requests"] == rows["screen", "stock"]["requests"]
    assert ("scroll", "hit L2") not in rows
    pruned = rows["camera", "EVS-style pruning"]
    assert {"answers_as_stock", "answers_right"} <= set(pruned)
    assert pruned["new_tokens_p50"] < rows["camera", "stock"]["new_tokens_p50"]
    assert {row["case"] for row in figures["streams"]} == {"screen", "camera", "slides", "scroll"}


def test_speed_up_at_a_given_share(load, monkeypatch, capsys, tmp_path):
    arguments = [
        "--quick",
        "--width",
        "7b",
        "--cases",
        "f=0.8",
        "portrait f=0.8",
        "--out",
        str(tmp_path / "c.png"),
    ]
    figures = last_line(load("ttft"), arguments, monkeypatch, capsys)
    against = figures["against_ideal"]["f=0.8"]
    num_text = against["stock_tokens"] - 576
    # 115 objects, two separators, and the text without the system words, which are in the prefix.
    assert 115 + 2 < against["new_tokens"] <= 115 + 2 + num_text
    assert 1 < against["ideal_prefill"] < against["ideal_tokens"] < 5
    assert against["prefill_wall"] > 0
    ways = {
        case: {row["way"] for row in figures["rows"] if row["case"] == case}
        for case in ("f=0.8", "portrait f=0.8")
    }
    assert {
        "hit L2",
        "hit L1",
        "miss",
        "stock",
        "exact-image cache, hit",
        "first-k recompute, reuse",
        "EVS-style pruning",
    } <= ways["f=0.8"]
    assert ways["portrait f=0.8"] - ways["f=0.8"] == {"stock, no letterbox"}


def test_times_of_a_row_are_those_of_its_requests(load):
    report = load("ttft_report")

    def timed(label: str, turn: int, milliseconds: float, repeat: bool = False):
        parts = dict.fromkeys(report.PARTS, 0.0) | {"language": milliseconds / 2}
        return report.Request("screen", turn, label, repeat, parts, parts, milliseconds, 10, 5, [7], True)

    found = [timed("stock", turn, 2.0 * (turn + 1)) for turn in range(21)]
    found += [timed("hit L2", turn, 1.0 * (turn + 1)) for turn in range(20)]
    found.append(timed("hit L2", 20, 1000.0, repeat=True))
    rows = {row["way"]: row for row in report.table(found, answers=True)}
    hit, plain = rows["hit L2"], rows["stock"]
    # An exact repeat counts for the exact-image cache only.
    assert (hit["requests"], hit["ttft_p50_ms"], hit["ttft_p95_ms"]) == (20, 10.5, 19.05)
    assert (plain["ttft_p50_ms"], plain["ttft_p95_ms"]) == (22.0, 40.0)
    assert (hit["speed_up"], hit["processor_p50_ms"]) == (2.0, 5.25)
    assert (hit["answers_as_stock"], hit["answers_right"]) == (1.0, 1.0)


def test_noise_is_forgiven_before_a_wall_and_nowhere_else(load, monkeypatch, capsys):
    words = ["--items", "6", "--frames", "6", "--noise", "0.5"]
    figures = last_line(load("cache_approximate"), words, monkeypatch, capsys)
    rows = {row["stream"]: row for row in figures["rows"]}
    wall, camera = rows["wall, noise 0.5"], rows["camera, noise 0.5"]
    assert wall["exact_hit_rate"] == 0
    assert wall["hit_rate_with_l3"] > 0
    assert wall["l3_hits"] == round(wall["hit_rate_with_l3"] * wall["items"])
    assert camera["l3_hits"] == 0
    assert {"camera, png or jpeg", "slides, png or jpeg", "screen, png or jpeg"} < set(rows)


def test_a_config_without_the_approximate_level_is_refused(load, monkeypatch, capsys):
    config = str(ROOT / "configs" / "cache" / "tiny_stream_screens.py")
    monkeypatch.setattr(sys, "argv", ["cache_approximate", "--config", config, "--items", "1"])
    module = load("cache_approximate")
    with pytest.raises(SystemExit) as stop:
        module.run_tool(module.main)
    assert stop.value.code == 2
    assert "L3 is off" in capsys.readouterr().err


def test_look_ups_are_timed_and_a_slow_one_is_reported(load, monkeypatch, capsys):
    module = load("cache_lookup")
    arguments = ["--entries", "30", "--lookups", "5"]
    figures = last_line(module, [*arguments, "--limit-ms", "1000"], monkeypatch, capsys)
    assert [(row["kind"], row["entries"]) for row in figures["rows"]] == [
        (kind, entries) for kind in ("distinct", "wallpaper") for entries in (10, 30)
    ]
    assert 0 < figures["slowest_ms"] < 1000
    assert last_line(module, [*arguments, "--limit-ms", "0"], monkeypatch, capsys, code=2)["slowest_ms"] > 0


def test_naming_is_timed_and_a_slow_one_is_reported(load, monkeypatch, capsys):
    module = load("cache_guard")
    arguments = ["--layers", "2", "--calls", "5"]
    figures = last_line(module, [*arguments, "--limit-ms", "1000"], monkeypatch, capsys)
    assert figures["modules"] > 50
    assert figures["tensors"] > 40
    assert 0 < figures["smallest_ms"] <= figures["median_ms"] < 1000
    assert last_line(module, [*arguments, "--limit-ms", "0"], monkeypatch, capsys, code=2)["median_ms"] > 0
