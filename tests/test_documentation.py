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
from launch_lines import filled, lines

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "data" / "README.md"]
_LAUNCHERS = re.compile(
    r"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?"
    r"(?:python |torchrun (?:--\S+ \d+ )*|accelerate launch (?:--multi_gpu )?(?:--\S+ \d+ )*)?"
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


def parsers(script: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """The parser that a script made, after it has read the words; SystemExit where it cannot."""
    made = []
    read = argparse.ArgumentParser.parse_args

    def parse(self: argparse.ArgumentParser, *args: object, **kwargs: object) -> None:
        made.append(self)
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
        return made[0]
    except SystemExit:
        if made and _is_a_name(made[0], words):
            return made[0]
        raise
    pytest.fail(f"{script} reads no arguments")


def _is_a_name(parser: argparse.ArgumentParser, words: list[str]) -> bool:
    """Whether words only name a command, such as `flmm-detseg data voc`, without what it is run on."""
    for word in words:
        choices = [
            action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)
        ]
        if not choices or word not in choices[0]:
            return False
        parser = choices[0][word]
    return True


def variants(line: str) -> list[str]:
    """A line without its optional parts (in brackets), and with all of them; of alternatives the first."""
    whole = re.sub(r"\[([^]]*)\]", r"\1", line)
    plain = [filled(line), filled(re.sub(r"(\w+)(?:\|\w+)+", r"\1", whole) if whole != line else line)]
    return [re.sub(r"\.\.\.$", "", one) for one in dict.fromkeys(plain)]


LINES = [(page, line) for line, page in lines().items()]


def test_there_are_commands() -> None:
    assert len(LINES) >= 80
    scripts = {_LAUNCHERS.sub("", line, count=1).split()[0] for _, line in LINES}
    assert len(scripts) >= 20, scripts


def test_a_command_that_is_not_understood_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (["data", "vqav3"], ["list-configs", "--jason"], ["ground", "--image", "i.png"]):
        with pytest.raises(SystemExit):
            parsers("flmm-detseg", words, monkeypatch)
    assert parsers("flmm-detseg", ["data", "voc"], monkeypatch) is not None


@pytest.mark.parametrize(("page", "line"), LINES, ids=[f"{page}:{line}" for page, line in LINES])
def test_a_documented_command_is_understood(
    page: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variant in variants(line):
        script, *words = shlex.split(_LAUNCHERS.sub("", variant, count=1))
        for word in words:
            if word.startswith("configs/") and word.endswith(".py") and "my_" not in word:
                assert (ROOT / word).is_file(), f"{page} names {word}"
        if script == "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
            assert [word for word in words if "=" not in word and word not in targets] == [], (
                f"{page}: {line}"
            )
        elif script != "xtuner":
            try:
                parsers(script, words, monkeypatch)
            except SystemExit:
                pytest.fail(f"{page}: `{line}` is not understood: {capsys.readouterr().err}")


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    shown = set(
        re.findall(r": ([\w./]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    )
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert pages - shown == set(), "put these pages into `nav` of mkdocs.yml"
    gone = {name for name in shown if not name.startswith("repository/")} - pages - {"index.md"}
    assert gone == set(), "mkdocs.yml names pages that are not there"
