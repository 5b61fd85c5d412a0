"""Words of text in any language: where they begin and end, and where one text stands in another as whole words.

A combining mark (an accent, a vowel sign) belongs to the character before it, and canonically equal texts are equal:
``é`` may be one character or two. Positions are always those of the text as it was given.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from typing import NamedTuple

Span = tuple[int, int]

# Scripts that put no space between words: any place between two characters may start or end a word. Thai and Lao,
# Myanmar, Khmer, Tai Le and New Tai Lue, Tai Tham; and from CJK radicals on (kana, hangul, ideographs).
_UNSPACED = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x1950, 0x19DF), (0x1A20, 0x1AAF))
_UNSPACED_FROM = 0x2E80
# Vowels and finals of hangul written letter by letter: they go on with the syllable before them.
_HANGUL_TAIL = range(0x1160, 0x1200)
_SKIN_TONES = range(0x1F3FB, 0x1F400)
# Longest words that are searched with `str.find`, whose time may grow with the product of both lengths.
_SHORT = 200
_ZERO_WIDTH_SPACE, _ZERO_WIDTH_JOINER = "\u200b", "\u200d"


class _Word(NamedTuple):
    """Characters that belong together, in canonical form, and where they stand."""

    form: str
    start: int
    end: int


def is_mark(char: str) -> bool:
    """Whether a character goes on with the one before it: a combining mark, or an invisible format character."""
    if char.isascii():
        return False
    category = unicodedata.category(char)
    if category == "Cf":
        # A zero-width space is a border of words, in scripts that show none.
        return char != _ZERO_WIDTH_SPACE
    return category[0] == "M" or ord(char) in _HANGUL_TAIL or ord(char) in _SKIN_TONES


def find_words(text: str, words: str) -> list[Span]:
    """Where ``words`` stand in ``text`` as whole words, exactly or, if nowhere, in another case.

    Args:
        text: Any text.
        words: What is looked for.

    Returns:
        Half-open character ranges of ``text``, in order, without overlap. Time grows with the sum of the lengths.
    """
    if len(words) <= _SHORT and text.isascii() and words.isascii():
        return _ascii_occurrences(text, words) or _ascii_occurrences(text.lower(), words.lower())
    return _occurrences(text, words, canonical) or _occurrences(text, words, _caseless)


def _ascii_occurrences(text: str, words: str) -> list[Span]:
    """:func:`_occurrences` where every character is its own form: 100 times as fast."""
    spans = []
    place = text.find(words) if words else -1
    while place >= 0:
        end = place + len(words)
        # Within a word of the text at either end.
        cut = (place > 0 and _joins(text[place - 1]) and _joins(words[0])) or (
            end < len(text) and _joins(words[-1]) and _joins(text[end])
        )
        if not cut:
            spans.append((place, end))
        place = text.find(words, place + 1 if cut else end)
    return spans


def _occurrences(text: str, words: str, form: Callable[[str], str]) -> list[Span]:
    # Each different word is one character of a code, so that an occurrence of the code is one of whole words.
    codes: dict[str, str] = {}
    parts = list(_words(text, form))
    code = "".join(codes.setdefault(part.form, chr(len(codes))) for part in parts)
    wanted = [codes.get(part.form) for part in _words(words, form)]
    if not wanted or None in wanted:
        return []
    spans = []
    pattern = "".join(map(str, wanted))
    place = code.find(pattern)
    while place >= 0:
        spans.append((parts[place].start, parts[place + len(pattern) - 1].end))
        place = code.find(pattern, place + len(pattern))
    return spans


def _words(text: str, form: Callable[[str], str]) -> Iterator[_Word]:
    """Words, and everything between them character by character, each with its marks."""
    start, joins = 0, False
    for first, end in _characters(text):
        next_joins = _joins(text[first:end])
        if first > start and not (joins and next_joins) and text[first - 1] != _ZERO_WIDTH_JOINER:
            yield _Word(form(text[start:first]), start, first)
            start = first
        joins = next_joins
    if text:
        yield _Word(form(text[start:]), start, len(text))


def _characters(text: str) -> Iterator[Span]:
    start = 0
    for place in range(1, len(text)):
        if not is_mark(text[place]):
            yield start, place
            start = place
    if text:
        yield start, len(text)


def _joins(character: str) -> bool:
    """Whether a character and its marks make one word with such a character beside them."""
    base = unicodedata.normalize("NFC", character[:4])[0]
    if not (base.isalnum() or base == "_" or is_mark(base)):
        return False
    code = ord(base)
    return code < _UNSPACED_FROM and not any(first <= code <= last for first, last in _UNSPACED)


def canonical(word: str) -> str:
    """One form for all spellings of a text, without invisible characters (variation selectors, joiners)."""
    if word.isascii():
        return word
    seen = "".join(char for char in unicodedata.normalize("NFD", word) if not _invisible(char))
    return seen or word


def _caseless(word: str) -> str:
    return canonical(canonical(word).casefold())


def _invisible(char: str) -> bool:
    return 0xFE00 <= ord(char) <= 0xFE0F or (unicodedata.category(char) == "Cf" and char != _ZERO_WIDTH_SPACE)
