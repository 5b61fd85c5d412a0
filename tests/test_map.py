"""The map for newcomers: what it names exists, and every room is on it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "flmm_detseg"
TEXT = (ROOT / "docs" / "map.md").read_text(encoding="utf-8")
# `heads/`, `cli.py`, `lmms/lmm.py::LMM.encode`
PLACES = sorted(set(re.findall(r"`([\w./]*(?:/|\.py|\.json)(?:::[\w.]+)?)`", TEXT)))
LINKS = sorted(set(re.findall(r"\]\(([^)#]+)", TEXT)))


def test_it_names_places() -> None:
    assert len(PLACES) > 60
    assert sum("::" in place for place in PLACES) > 20
    assert LINKS


@pytest.mark.parametrize("link", LINKS)
def test_its_links_lead_somewhere(link: str) -> None:
    assert (ROOT / "docs" / link).is_file()


@pytest.mark.parametrize("place", PLACES)
def test_what_it_names_exists(place: str) -> None:
    name, _, symbol = place.partition("::")
    found = [path for path in (PACKAGE / name, ROOT / name) if path.exists()]
    assert found, f"docs/map.md names {name}, which is neither in flmm_detseg/ nor in the repository"
    assert found[0].is_dir() == name.endswith("/")
    scope: list[ast.stmt] = ast.parse(found[0].read_text(encoding="utf-8")).body if symbol else []
    for part in filter(None, symbol.split(".")):
        node = next((node for node in scope if getattr(node, "name", None) == part), None)
        assert node is not None, f"docs/map.md names {place}, and {name} has no {part}"
        scope = getattr(node, "body", [])


def test_every_room_is_on_it() -> None:
    table = TEXT[TEXT.index("## The rooms") : TEXT.index("## Five walks")]
    rooms = [f"{path.name}/" for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()]
    modules = [path.name for path in PACKAGE.glob("*.py") if path.name != "__init__.py"]
    assert not [room for room in rooms + modules if f"`{room}`" not in table]
