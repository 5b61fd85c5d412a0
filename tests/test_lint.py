"""One list of checks: `make lint`, the hooks of pre-commit and `.ci/run` do the same, with pinned versions."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


def lint_commands() -> list[str]:
    """What `make lint` runs, with `.venv/bin` in front."""
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    return [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]


def test_hooks_run_what_make_lint_runs() -> None:
    hooks = [
        hook
        for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
        for hook in repo["hooks"]
    ]
    assert [hook["entry"] for hook in hooks] == lint_commands()
    # Of the environment, on the whole tree, whatever was changed.
    for hook in hooks:
        assert (hook["language"], hook["always_run"], hook["pass_filenames"]) == ("system", True, False)


def test_the_gate_runs_make_lint() -> None:
    assert re.search(r"^ .*step .* make lint;", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)


def test_their_versions_are_pinned() -> None:
    pinned = (ROOT / "requirements" / "lock.txt").read_text()
    programs = {Path(command.split()[0]).name for command in lint_commands()} | {"pre-commit"}
    assert programs == {"ruff", "lint-imports", "mypy", "pydoclint", "pre-commit"}
    for package in ("ruff", "import-linter", "mypy", "pydoclint", "pre_commit"):
        assert re.search(rf"^{package}==[\d.]+$", pinned, re.MULTILINE), package


def test_types_of_the_inner_rooms_are_checked_strictly() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    strict = next(part for part in settings["overrides"] if part.get("warn_return_any"))["module"]
    inner = {"errors", "ops", "registry", "store", "structures"}
    assert {name.removeprefix("flmm_detseg.").removesuffix(".*") for name in strict} == inner
    assert settings["packages"] == ["flmm_detseg"]
    assert settings["disallow_untyped_defs"]
    # A name that is no package (any more) would be an error of mypy; one whose check is off would not.
    assert not [part for part in settings["overrides"] if part.get("ignore_errors")]


def test_an_ignored_type_error_has_its_code_and_its_reason() -> None:
    lines = [line for path in (ROOT / "flmm_detseg").rglob("*.py") for line in path.read_text().splitlines()]
    ignored = [line for line in lines if re.search(r"#\s*type:\s*ignore", line)]
    assert ignored
    assert [line for line in ignored if not re.search(r"# type: ignore\[[\w-]+\]  # \w", line)] == []
