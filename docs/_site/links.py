"""MkDocs hooks: pages and files outside of docs/ that a page links to become pages of the site.

The repository's README is the site's start. What else is linked (configs, modules, model cards) is shown under
`repository/`, so that every link works in the repository and, without a network, on the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"(\]\()(?!\w+:|#|//)([^)#\s]+)((?:#[^)\s]*)?\))")
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
_KINDS = {".py": "python", ".json": "json", ".toml": "toml", ".yml": "yaml", ".txt": "text"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the start page, and every file and folder outside of docs/ that is linked, and what those link to."""
    waiting = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "data/README.md"]
    waiting += [f"docs/{file.src_uri}" for file in files if file.src_uri.endswith(".md")]
    seen = set(waiting)
    while waiting:
        source = waiting.pop()
        if not source.startswith("docs/"):
            files.append(File.generated(config, _place(source), content=_content(source)))
        for target in sorted(_links(source) - seen):
            if (ROOT / target).exists() and not target.startswith("docs/"):
                seen.add(target)
                waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links of the repository into links of the site."""
    place = page.file.src_uri
    source = place.removeprefix("repository/") if place.startswith("repository/") else f"docs/{place}"
    source = "README.md" if place == "index.md" else source
    if not (ROOT / source).is_file():
        return markdown  # a source file or a folder, shown as it is

    def moved(found: re.Match[str]) -> str:
        target = _place(_target(source, found[2]))
        return f"{found[1]}{posixpath.relpath(target, posixpath.dirname(place) or '.')}{found[3]}"

    parts, done = [], 0
    for code in _CODE.finditer(markdown):
        parts += [_LINK.sub(moved, markdown[done : code.start()]), code[0]]
        done = code.end()
    return "".join([*parts, _LINK.sub(moved, markdown[done:])])


def _links(source: str) -> set[str]:
    """Paths in the repository that a page links to."""
    if not source.endswith(".md"):
        return set()
    text = _CODE.sub("", (ROOT / source).read_text(encoding="utf-8"))
    return {_target(source, link) for _, link, _ in _LINK.findall(text)}


def _target(source: str, link: str) -> str:
    """Path in the repository of a page's link."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _place(target: str) -> str:
    """Where the site has a file or folder of the repository."""
    if target == "README.md":
        return "index.md"
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    if (ROOT / target).is_dir():
        return f"repository/{target}/index.md"
    return f"repository/{target}" if target.endswith(".md") else f"repository/{target}.md"


def _content(source: str) -> str:
    """A page of a file or folder of the repository."""
    path = ROOT / source
    if path.is_dir():
        names = sorted(f"{one.name}/" if one.is_dir() else one.name for one in path.glob("[!._]*"))
        return "\n".join([f"# `{source}/`", "", *(f"- `{name}`" for name in names), ""])
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    kind = _KINDS.get(path.suffix, "text")
    return f"---\nsearch:\n  exclude: true\n---\n\n# `{source}`\n\n````{kind}\n{text.rstrip()}\n````\n"
