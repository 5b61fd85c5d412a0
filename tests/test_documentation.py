"""Commands that the documentation shows: their tools read them, their configs exist."""

from __future__ import annotations

import argparse
import configparser
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "data" / "README.md"]
_COMMAND = re.compile(
    r"(?:(?:python|accelerate launch(?: --\S+ \d+)?) (?=tools/|benchmarks/)|(?:\.venv/bin/|^|`)(?=flmm-detseg ))"
    r"(tools/\w+\.py|benchmarks/\w+\.py|flmm-detseg)([^`\n#]*)",
    re.MULTILINE,
)


_LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]*))?\)")


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"]
)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for name, anchor in _LINK.findall(page.read_text(encoding="utf-8")):
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name} links to {name}, which is not there"
        assert not anchor or anchor in anchors(target), (
            f"{page.name} links to {name}#{anchor}: no such heading"
        )


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"]
)
def test_modules_and_pages_that_are_named_exist(page: Path) -> None:
    """`lmms/family.py`, `family.py`: the end of a path of the repository. A reader's own files are my_... or NAME."""
    folders = ("flmm_detseg", "configs", "tests", "tools", "benchmarks", "docs")
    files = [f"/{path.relative_to(ROOT)}" for folder in folders for path in (ROOT / folder).rglob("*.*")]
    files += [f"/{path.name}" for path in ROOT.iterdir()]
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for name in re.findall(r"`([\w./]+\.(?:py|md|toml))(?:::[\w.]+)?`", text):
        own = "my_" in name or "NAME" in name
        assert own or any(file.endswith(f"/{name}") for file in files), f"{page.name} names {name}"


def test_the_architecture_shows_the_layers_as_they_are_checked() -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / ".importlinter")
    layers = settings["importlinter:contract:layers"]["layers"].replace(":", " ").strip().splitlines()
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    shown = page[page.index("## Rooms") :].split("```")[1].strip().splitlines()
    assert [line.split() for line in shown] == [line.split() for line in layers]


class Read(Exception):
    """The arguments were read."""


def commands() -> list[tuple[str, str, str]]:
    """Page, script and arguments; optional parts (in brackets) are left out, alternatives are the first."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for script, arguments in _COMMAND.findall(text):
            plain = re.sub(r"\[[^]]*\]|\.\.\.$", "", arguments.rstrip(" .,;)"))
            # In a sentence a command may stand without its arguments.
            whole = "--" in plain or (plain.split() and script != "flmm-detseg")
            if whole or script.endswith("quickstart.py"):
                found.append((page.name, script, plain))
    return found


COMMANDS = commands()


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 20
    assert len({script for _, script, _ in COMMANDS}) >= 12


@pytest.mark.parametrize(
    ("page", "script", "arguments"), COMMANDS, ids=[f"{p}:{s}{a}" for p, s, a in COMMANDS]
)
def test_a_documented_command_is_understood(
    page: str,
    script: str,
    arguments: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = shlex.split(arguments)
    for word in words:
        if word.startswith("configs/") and word.endswith(".py") and "my_" not in word:
            assert (ROOT / word).is_file(), f"{page} names {word}"
    read = argparse.ArgumentParser.parse_args

    def parse(self: argparse.ArgumentParser, *args: object, **kwargs: object) -> None:
        read(self, *args, **kwargs)
        raise Read

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    monkeypatch.setattr(sys, "argv", [script, *words])
    if script == "flmm-detseg":
        script = "flmm_detseg/cli.py"
    monkeypatch.syspath_prepend(str(ROOT / Path(script).parent))  # as Python does for a script
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except Read:
        return
    except SystemExit:
        pytest.fail(f"{page}: `{script}{arguments}` is not understood: {capsys.readouterr().err}")
    pytest.fail(f"{script} reads no arguments")
