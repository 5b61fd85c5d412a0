"""A flag that another argument makes meaningless is refused, by its name and with what it needs."""

from __future__ import annotations

import argparse
import importlib
import shutil
from pathlib import Path

import pytest

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.lmms.chat import TEMPLATES
from flmm_detseg.utils.choices import PROMPT_TEMPLATES

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "data" / "models" / "tiny_llava"
GROUND = ["gone.py", "--image", "gone.png", "--caption", "a", "--phrase", "a", "--out", "o"]
INFER = ["gone.py", "--image", "gone.png", "--instruction", "find stars"]
EXPLAIN = ["gone.png", "--out", "o.html"]
FORCED = ["c", "--teacher-forced"]
STREAM = ["gone.py", "--images", "gone", "--question", "a ?", "--cache", "off"]


def run(command: str, *words: str) -> object:
    module, _, part = command.partition("::")
    module = importlib.import_module(f"flmm_detseg.commands.{module}")
    module = getattr(module, part) if part else module
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return module.run(parser.parse_args(words))


@pytest.mark.parametrize(
    ("command", "words", "flag", "remedy"),
    [
        ("ground", [*GROUND, "--url-prefix", "x"], "--url-prefix", "--format label-studio"),
        ("ground", [*GROUND, "--url-prefix", "", "--format", "coco"], "--url-prefix", "--format label-studio"),
        ("infer", [*INFER, "--url-prefix", "x", "--format", "yolo"], "--url-prefix", "--format label-studio"),
        ("ground", [*GROUND, "--polygon-tolerance", "0"], "--polygon-tolerance", "--format coco"),
        ("infer", [*INFER, "--polygon-tolerance", "0"], "--polygon-tolerance", "--format coco"),
        ("explain", [*EXPLAIN, "--caption", "a", "--max-new-tokens", "3"], "--max-new-tokens", "no answer"),
        ("chat", ["--lmm", "a/b", "--image", "i", "--score-threshold", "0"], "--score-threshold", "detection head"),
        ("ground", [*GROUND, "--answer-with-detections"], "--answer-with-detections", "answer to --question"),
        (
            "chat", ["--lmm", "a/b", "--image", "i", "--answer-with-detections", "tinyworld"],
            "--answer-with-detections", "detection head",
        ),
        ("app", ["gone.py", "--frames", "x"], "--frames", "--stream CONFIG"),
        *(("stream", [*STREAM, flag], flag, "leave out --cache off") for flag in ("--static", "--compare")),
        *(
            ("stream", [*STREAM, flag, "x"], flag, "leave out --cache off")
            for flag in ("--tenant", "--session", "--prometheus")
        ),
        ("evaluate.detection", ["gone.py", "--max-new-tokens", "3"], "--max-new-tokens", "--boxes text"),
        *(
            (f"evaluate.mask_answers::{name}", [*FORCED, "--max-new-tokens", "3"], "--max-new-tokens", "no answer")
            for name in ("reason", "grefcoco", "gcg")
        ),
        ("data.check", ["jsonl", "gone", "--num-preview", "3"], "--num-preview", "--preview PNG"),
        ("label", ["gone", "--out", "o", "--texts", "--box-threshold", "0"], "--box-threshold", "--detector"),
        ("label", ["gone", "--out", "o", "--texts", "--text-threshold", "0"], "--text-threshold", "--detector"),
        ("label", ["gone", "--out", "o", "--texts", "--device", "cpu"], "--device", "--detector"),
        ("rank_heads", ["c", "--out", "o", "--prompt-template", "vicuna"], "--prompt-template", "--lmm"),
    ],
)  # fmt: skip
def test_it_is_refused_before_files_are_looked_for(command, words, flag, remedy):
    with pytest.raises(ConfigError, match=rf"^{flag} would change nothing: .*{remedy}"):
        run(command, *words)


def test_a_page_of_features_takes_nothing_that_its_config_says(tmp_path):
    words = ["--features", "gone.py", "--dtype", "float32", "--prompt-template", "vicuna"]
    image = ROOT / "data" / "models" / "tiny_heads" / "scene.png"
    with pytest.raises(ConfigError, match="^--dtype, --prompt-template would change nothing"):
        run("explain", str(image), "--out", str(tmp_path / "o.html"), *words)


@pytest.mark.parametrize("command", ["ground", "chat", "app"])
def test_a_prompt_template_goes_with_an_lmm(command):
    words = {"ground": GROUND, "chat": ["--image", "i"], "app": []}[command]
    with pytest.raises(DataError, match="--prompt-template goes with --lmm"):
        run(command, *words, "--prompt-template", "mistral")
    with pytest.raises(SystemExit):
        run(command, *words, "--prompt-template", "alpaca")
    assert set(TEMPLATES) == set(PROMPT_TEMPLATES)


@pytest.mark.parametrize("given", ["vicuna", "mistral"])
def test_a_prompt_template_reaches_the_lmm(given, tmp_path, monkeypatch):
    """Of every command that loads an LMM by its name."""
    seen = []

    class Adapter:
        family_class = object

        @staticmethod
        def from_pretrained(name, *, prompt_template, **_):
            seen.append(prompt_template)
            raise ConfigError("seen enough")

    monkeypatch.setattr("flmm_detseg.lmms.load_lmm.find_adapter", lambda name: Adapter)
    scene = str(ROOT / "data" / "models" / "tiny_heads" / "scene.png")
    phrases = tmp_path / "phrases.jsonl"
    phrases.write_text(f'{{"image": "{scene}", "phrase": "a ring"}}\n' * 2)
    lmm = ["--lmm", str(TINY), "--prompt-template", given]
    lines = {
        "ground": ["--image", scene, "--caption", "a", "--phrase", "a", "--out", str(tmp_path / "o.png")],
        "chat": ["--image", scene, "--out", str(tmp_path / "chat")],
        "explain": [scene, "--out", str(tmp_path / "o.html")],
        "rank_heads": ["--phrases", str(phrases), "--image-dir", str(tmp_path), "--out", str(tmp_path / "r.json")],
    }  # fmt: skip
    for command, words in lines.items():
        with pytest.raises(ConfigError, match="seen enough"):
            run(command, *words, *lmm)
    assert seen == [given] * len(lines)


def test_heads_without_a_ranking_are_refused(tmp_path):
    folder = tmp_path / "lmm"
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("head_ranking.json"))
    words = [
        "--image",
        str(ROOT / "data" / "models" / "tiny_heads" / "scene.png"),
        "--caption",
        "a",
        "--phrase",
        "a",
    ]
    with pytest.raises(
        ConfigError, match=r"`heads` is 2 \(--heads\).*has none: give `ranking` \(--ranking FILE"
    ):
        run("ground", "--lmm", str(folder), "--heads", "2", *words, "--out", str(tmp_path / "o.png"))
