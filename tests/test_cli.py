"""`flmm-detseg`: every command is there, cheap to ask, and the same as its script in tools/."""

from __future__ import annotations

import argparse
import ast
import runpy
import sys
from pathlib import Path

import pytest

from flmm_detseg import __version__, cli
from flmm_detseg.commands import data, evaluate, export, imports
from flmm_detseg.commands.parts import add_parts
from flmm_detseg.utils.scripts import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
# Scripts for who develops this repository; not commands.
OWN = {"make_control_lmm", "pretrain_tiny_llava", "pretrain_tiny_sam", "quickstart"}
_HELP = """
import contextlib, io, sys, time
from flmm_detseg import cli
for words in {lines}:
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        try:
            cli.main([*words, "--help"])
        except SystemExit as ended:
            assert ended.code == 0, words
    assert shown.getvalue().startswith("usage: flmm-detseg " + " ".join(words)), words
heavy = {{"torch", "numpy", "mmengine", "transformers", "mmdet"}}
print(sorted({{name.partition(".")[0] for name in sys.modules}} & heavy))
"""


def lines() -> list[list[str]]:
    """Every command, and every part of those that have parts."""
    groups = {"data": data, "evaluate": evaluate, "export": export, "import": imports}
    found: list[list[str]] = [[], *([name] for name in cli.COMMANDS)]
    for name, module in groups.items():
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        (parts,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        found += [[name, part] for part in parts.choices]
    return found


def test_no_help_imports_what_takes_seconds(run_python):
    assert len(lines()) >= 30
    assert run_python(_HELP.format(lines=lines())).stdout.strip() == "[]"


def test_a_wrong_argument_is_reported_before_anything_heavy_is_imported(run_python):
    code = """
import sys
from flmm_detseg import cli
for words in (
    ["train", "gone"], ["evaluate", "refcoco", "gone"], ["export", "heads", "gone", "--checkpoint", "c", "--out", "o"],
    ["import", "flmm", "x", "gone", "--out", "o"], ["show-config", "gone"], ["copy-config", "gone"],
    ["stream", "gone", "--images", "x", "--question", "y"], ["data", "check", "config", "gone"],
    ["infer", "c", "--image", "gone", "--instruction", "x"], ["evaluate", "boxes"], ["train", "--resume"], [],
    ["stages", "gone"], ["table", "gone"],
    ["ground", "--image", "gone.png", "--caption", "a", "--phrase", "a", "--out", "o.png"], ["chat", "--image", "gone"],
):
    try:
        cli.main(words)
    except SystemExit as ended:
        assert ended.code == 2, (words, ended.code)
    assert "torch" not in sys.modules and "mmengine" not in sys.modules, words
"""
    assert run_python(code).stderr.count("does not exist") == 13


@pytest.mark.parametrize("words", [["version"], ["--version"]])
def test_version(words, capsys):
    with pytest.raises(SystemExit, match="^0$"):
        cli.main(words)
    assert capsys.readouterr().out.split() == [__version__]


def test_every_script_is_a_command(monkeypatch):
    """The same module, so the same arguments, output and exit codes."""
    scripts = {path.name: path for path in (ROOT / "tools").glob("*.py") if path.stem not in OWN}
    assert set(scripts) == set(COMMANDS)
    for name, words in COMMANDS.items():
        seen = []
        monkeypatch.setattr("flmm_detseg.utils.cli.run_as_tool", seen.append)
        runpy.run_path(str(scripts[name]), run_name="__main__")
        parser = argparse.ArgumentParser()
        add_parts(parser, cli.COMMANDS)
        chosen = parser
        for word in words:
            (parts,) = (act for act in chosen._actions if isinstance(act, argparse._SubParsersAction))
            chosen = parts.choices[word]
        assert seen[0].run == chosen.get_default("run"), name
        assert f"`flmm-detseg {' '.join(words)}`" in scripts[name].read_text()


def test_commands_import_what_is_heavy_in_run_only():
    """What a reader of a command's module can rely on: at its top there is nothing but cheap imports."""
    cheap = {*sys.stdlib_module_names, "tqdm"}
    ours = ("commands", "utils", "errors", "doctor", "labelling.thresholds", "datasets.tinyworld.stream_spec")
    for path in (ROOT / "flmm_detseg" / "commands").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            for name in names:
                top, _, rest = name.partition(".")
                assert top in cheap or (top == "flmm_detseg" and (not rest or rest.startswith(ours))), path
