from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def last_line(name: str, arguments: list[str], monkeypatch, capsys) -> dict:
    module = load(name)
    monkeypatch.setattr(sys, "argv", [name, "--quick", *arguments])
    with pytest.raises(SystemExit) as stop:
        module.run_tool(module.main)
    assert stop.value.code == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("lmm", ["llava", "qwen3_vl", "gemma3"])
def test_attention_rows_reports_its_ratios(lmm, monkeypatch, capsys):
    figures = last_line("attention_rows", ["--repeats", "1", "--lmm", lmm], monkeypatch, capsys)
    lengths = {"120", "300"}
    for name in (
        "time_ratio_rows_vs_sdpa",
        "time_ratio_eager_vs_rows",
        "attention_memory_ratio_eager_vs_rows",
    ):
        assert set(figures[name]) == lengths
        assert all(value > 0 for value in figures[name].values())
    # Exact by arithmetic: L H T^2 in bf16 against K L H N in float32.
    assert figures["attention_memory_ratio_eager_vs_rows"]["300"] == round(300**2 * 2 / (8 * 240 * 4), 1)
    assert figures["per_length"]["300"]["sdpa"]["attention_bytes"] == 0


def test_prefix_reuse_gives_equal_rows(monkeypatch, capsys):
    figures = last_line("prefix_reuse", ["--repeats", "1", "--expressions", "3"], monkeypatch, capsys)
    assert figures["max_abs_difference"] < 1e-5
    assert figures["speedup_packed_vs_loop"] > 0
    assert set(figures["seconds"]) == {"loop", "batch", "packed"}


def test_packed_questions_compute_the_same_step(monkeypatch, capsys):
    figures = last_line("packed_questions", [], monkeypatch, capsys)
    for name in ("cached", "stock"):
        assert figures[name]["loss_difference"] < 1e-5
        assert figures[name]["gradient_difference"] < 1e-4
        assert figures[name]["speedup"] > 0


def test_sam_settings_change_little(monkeypatch, capsys):
    figures = last_line("sam_settings", ["--repeats", "1", "--scenes", "2"], monkeypatch, capsys)
    masks = figures["masks_of_tiny_sam"]
    assert masks["float32 eager"]["least_iou"] == 1
    assert masks["float32 sdpa"]["embedding_difference"] < 1e-5
    assert 0 < masks["bfloat16 eager"]["embedding_difference"] < 0.05
    assert set(figures["speedup"]["bfloat16 sdpa"]) == {"windowed", "global", "vit_l"}


def test_large_pictures_separate_what_follows_the_model(monkeypatch, capsys):
    figures = last_line("large_pictures", ["--phrases", "3"], monkeypatch, capsys)
    assert 0 < figures["share_after_the_model"] < figures["share_with_enlarging"] < 1
    assert 0 < figures["covered_by_a_mask"] < 1


@pytest.mark.long
def test_phrases_fail_above_their_limit(monkeypatch, capsys):
    figures = last_line("phrases", [], monkeypatch, capsys)
    assert figures["passed"]
    assert set(figures["phrases"]) == {"2", "6"}
    module = load("phrases")
    monkeypatch.setattr(
        sys, "argv", ["phrases", "--few", "2", "--many", "3", "--repeats", "1", "--max-time", "0"]
    )
    with pytest.raises(SystemExit) as stop:
        module.main()
    assert stop.value.code == 1
    assert not json.loads(capsys.readouterr().out.splitlines()[-1])["passed"]


def test_answer_rules_compare_answers_with_the_most_frequent_one(monkeypatch, capsys, tmp_path):
    module = load("answer_rules")
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    asked = {"text": "what colour is it ?", "answer": "red"}
    train = [
        {**asked, "question_id": i, "image": "a.png", "answer": word} for i, word in enumerate("bacbacb")
    ]
    val = [
        {**asked, "question_id": i, "image": f"{'ab'[i // 2]}.png", "answer": word}
        for i, word in enumerate("babc")
    ]
    answers = [{"question_id": i, "metadata": {"score": float(i > 0)}} for i in range(4)]
    files = {"train.jsonl": train, "val.jsonl": val, "answers.jsonl": answers}
    for name, lines in files.items():
        (tmp_path / name).write_text("\n".join(map(json.dumps, lines)))
    places = [str(tmp_path / name) for name in files]
    arguments = [*places[:2], "--images", str(tmp_path), "--answers", places[2]]
    monkeypatch.setattr(sys, "argv", ["answer_rules", *arguments])
    figures = module.main()["figures"]
    # "b" is right twice, once an image; the given answers are wrong once, in one of two images.
    assert figures["most frequent answer"] == {
        "accuracy": 0.5, "low": 0.5, "high": 0.5, "num_questions": 4, "num_images": 2,
    }  # fmt: skip
    given = figures[places[2]]
    assert (given["accuracy"], given["low"], given["high"]) == (0.75, 0.5, 1.0)


def test_top_heads_reports_what_fewer_channels_cost(monkeypatch, capsys):
    figures = last_line("top_heads", [], monkeypatch, capsys)
    # Float32 rows on 14 x 14 patches.
    by_count = {count: row["bytes_per_phrase"] for count, row in figures["tiny"].items()}
    assert by_count == {"32": 25088, "8": 6272}
    assert figures["tiny"]["32"]["time_ratio"] == 1
    eight, four = (figures["unet_7b"][count] for count in ("8", "4"))
    assert eight["parameters"] - four["parameters"] == 4 * 8 * 3 * 3
    assert eight["bytes_per_phrase"] == 2 * four["bytes_per_phrase"]
