"""Plain words: texts of the package, its configs and documents use the terms of the field."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Word -> what to write instead. A word within a name (`max_stale`), an option (`--fresh`), a documented argument
# (`fresh: ...`) or "held-out" is not meant.
PLAIN = {
    r"rungs?": "step N",
    r"by lot": "at random",
    r"told(?: apart)?": "reported, given; distinguished",
    r"held": "kept, pinned, used",
    r"stale": "changed patches, outdated",
    r"fresh(?:ly)?": "new, untrained, recomputed",
    r"donors?": "matched entry, stored background",
    r"stock": "unmodified",
    r"shadow(?:s|ed)?": "spot check",
    r"sent again": "recomputed, repeated",
    r"behind": "after",
    r"(?:by|in|take|takes) turns?": "alternately, one at a time",
    r"out of training": "frozen",
}
_WORDS = re.compile(rf"(?<![\w-])(?:{'|'.join(f'({word})' for word in PLAIN)})(?![\w-]|: )", re.IGNORECASE)
# Words of English that the parser of phrases knows; what TinyWorld says about places; dialogues.
ALLOWED = {
    "flmm_detseg/language/noun_phrases.py": {"behind", "held"},
    "flmm_detseg/inference/instructions.py": {"behind"},
    "flmm_detseg/datasets/tinyworld/stream_questions.py": {"behind"},
    "flmm_detseg/datasets/tinyworld/word_list.py": {"behind"},
    "flmm_detseg/datasets/llava_instruct.py": {"take turns", "in turn"},
    "docs/background_cache_results.md": {"stock", "behind"},  # explained there; a question of TinyWorld
}
_STRINGS = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}


def _texts(source: str) -> Iterator[tuple[int, str]]:
    """Comments and strings that are more than a word (a key or a value), each with its first line."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in _STRINGS and " " in token.string.strip():
            yield token.start[0], token.string


def _found(path: Path) -> list[str]:
    source = path.read_text(encoding="utf-8")
    if not _WORDS.search(source):
        return []
    texts = (
        _texts(source)
        if path.suffix == ".py"
        else [(1, re.sub(r"```.*?```|`[^`\n]*`", _blank, source, flags=re.DOTALL))]
    )
    name = str(path.relative_to(ROOT))
    found = []
    for start, text in texts:
        for match in _WORDS.finditer(text):
            if match[0].lower() not in ALLOWED.get(name, ()):
                remedy = list(PLAIN.values())[(match.lastindex or 1) - 1]
                found.append(
                    f"{name}:{start + text.count(chr(10), 0, match.start())}: {match[0]!r}; write {remedy}"
                )
    return found


def _blank(match: re.Match[str]) -> str:
    """As many lines without words: code in documents."""
    return "\n" * match[0].count("\n")


@pytest.mark.parametrize("room", ["flmm_detseg", "configs", "tools", "docs", "."])
def test_texts_use_plain_words(room: str) -> None:
    folder = ROOT / room
    files = folder.glob("*.md") if room == "." else [*folder.rglob("*.py"), *folder.rglob("*.md")]
    found = [line for path in sorted(files) for line in _found(path)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.py", 'x = f"the donor of {y}"  # told by lot\nfresh = 1\n', ["donor", "told", "by lot"]),
        ("a.py", '"""Args:\n    fresh: As `max_stale`; held-out images, --fresh, "stock".\n"""\n', ["stock"]),
        ("a.py", 'key = "stock"\n', []),
        (
            "a.md",
            "A rung.\n\n```bash\nrun --stale by lot\n```\nSent again, `told`.\n",
            ["rung", "Sent again"],
        ),
    ],
)
def test_words_are_found_in_texts_only(name, text, words, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / name).write_text(text)
    assert [line.split("'")[1] for line in _found(tmp_path / name)] == words
