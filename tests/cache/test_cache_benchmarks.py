"""The benchmarks of the cache: they run, their baselines are what they say, and a wrong cache is noticed."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from flmm_detseg.cache import BackgroundCache
from flmm_detseg.datasets.tinyworld.streams import make_stream
from flmm_detseg.inference.streaming import stream_from_config
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


def test_exactness_finds_no_difference(load, monkeypatch, capsys):
    figures = last_line(load("cache_exactness"), ["--items", "48", "--frames", "8"], monkeypatch, capsys)
    for level in ("L1", "L2"):
        assert figures["levels"][level]["items"] > 5
        assert figures["levels"][level]["different_tokens"] == 0
        assert figures["levels"][level]["max_logit_difference"] <= 1e-4
    rates = {row["stream"]: row["hit_rate"] for row in figures["streams"]}
    assert rates["camera/png"] > 0
    assert rates["scroll/png"] == 0


def test_exactness_notices_wrong_features(load, monkeypatch, capsys):
    module = load("cache_exactness")

    class Wrong(BackgroundCache):
        def insert(self, key, namespace, *, features, prefix, prefix_key, saved_ms, session):
            if features is None:
                return False
            saved = {"L1": saved_ms["L1"]}
            return super().insert(key, namespace, features=1.02 * features, saved_ms=saved, session=session)

    monkeypatch.setattr(module, "FeaturesOnlyCache", Wrong)
    figures = last_line(module, ["--items", "48", "--frames", "8"], monkeypatch, capsys, code=2)
    assert any(problem.startswith("L1") for problem in figures["problems"])
    assert figures["levels"]["L2"]["max_logit_difference"] <= 1e-4


def test_baselines_are_stock_llava(load):
    ttft, ways = load("ttft"), load("ttft_ways")
    model = stream_from_config(ttft.CONFIG, untrained=True)[0].model
    exact, first_k = ways.ExactImage(model), ways.FirstK(model, num_tokens=model.layout.num_patches)
    # Squares have no letterbox.
    all_ways = [ways.Stock(model), ways.Stock(model, drop_letterbox=True), exact, exact, first_k, first_k]
    labels = []
    for item in make_stream("camera", 1, 0, 3):
        sample = Sample(item.stream, item.image, "", (), prompt=item.question)
        with model.base_mode():
            wanted = model.generate(sample, max_new_tokens=12)
        for way in all_ways:
            done = ttft.request(way, sample, "camera", 0, session="s", answer=wanted.strip())
            assert done.right, done.label
            labels.append(done.label)
    assert {"exact-image cache, hit", "exact-image cache, miss", "first-k recompute, reuse"} <= set(labels)


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
    } <= ways["f=0.8"]
    assert ways["portrait f=0.8"] - ways["f=0.8"] == {"stock, no letterbox"}
