"""The documentation site is built by its own strict rules, without a network, and every link on it leads somewhere."""

from __future__ import annotations

import html
import os
import re
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"""(?:href|src)=(?:"([^"]*)"|'([^']*)'|([^\s>]+))""")


@pytest.mark.long
def test_the_site_is_built_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    mkdocs = ROOT / ".venv-docs" / "bin" / "mkdocs"
    assert mkdocs.is_file(), "run `make docs` once: it makes the environment of the site"
    command = [str(mkdocs), "build", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    pages = {path: path.read_text(encoding="utf-8") for path in (tmp_path / "site").rglob("*.html")}
    assert len(pages) > 60
    ids = {path: set(re.findall(r"""id=["']?([^"'\s>]+)""", text)) for path, text in pages.items()}
    broken = []
    for path, text in pages.items():
        if path.name == "404.html":
            continue  # its links start from the site's address
        for found in _LINK.findall(text):
            link = html.unescape("".join(found))
            if re.match(r"\w+:|//|$", link):
                continue
            name, _, anchor = unquote(link).partition("#")
            target = (path.parent / name.partition("?")[0]).resolve() if name else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or (anchor and target in ids and anchor not in ids[target]):
                broken.append(f"{path.relative_to(tmp_path)}: {link}")
    assert not broken, "\n".join(broken[:40])
    # What a docstring says is on the page of the API, and every tutorial is there.
    assert "Where the LMM looked at the words of a phrase" in pages[tmp_path / "site" / "api.html"]
    assert sum(path.name.startswith("tutorial_") for path in pages) == 5
    # Nothing of a page is fetched from elsewhere.
    fetched = [
        f"{path.name}: {link}"
        for path, text in pages.items()
        for link in re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=[\"']?(https?://[^\"'\s>]+)", text)
    ]
    assert not fetched, fetched[:5]
