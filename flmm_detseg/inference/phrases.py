"""From a user's input (phrases, character spans, or nothing) to the phrases of a sample."""

from __future__ import annotations

from collections.abc import Sequence

from flmm_detseg.errors import DataError, PhraseNotFoundError
from flmm_detseg.language.words import find_words
from flmm_detseg.structures import Phrase
from flmm_detseg.utils.values import shown

Span = tuple[int, int]


def locate_phrases(caption: str, phrases: Sequence[str], record: str = "") -> tuple[Phrase, ...]:
    """Finds each phrase in the caption, as whole words.

    A phrase that occurs several times means its first occurrence; naming it again means the next one. Case
    matters only where there is a choice: an exact match wins over one that differs in case.
    Words are those of :mod:`flmm_detseg.language.words`, in any language; composed and decomposed accents are equal.

    Args:
        caption: The text.
        phrases: K texts.
        record: Names the caption in errors, for example ``"image 3"``.

    Returns:
        K phrases with one span each.

    Raises:
        PhraseNotFoundError: A phrase does not occur (often enough); names phrase and caption.
        DataError: A phrase is no text.
    """
    found = []
    taken: dict[str, int] = {}
    for phrase in phrases:
        if not isinstance(phrase, str):
            raise DataError(f"{_where(record)}a phrase is {shown(phrase)}, not a text")
        if not phrase.strip():
            raise PhraseNotFoundError(f"{_where(record)}an empty phrase cannot be found in {caption!r}")
        spans = find_words(caption, phrase)
        number = taken.get(phrase, 0)
        if number >= len(spans):
            problem = (
                "does not occur"
                if not spans
                else f"occurs only {len(spans)} time(s), asked for {number + 1},"
            )
            raise PhraseNotFoundError(
                f"{_where(record)}phrase {phrase!r} {problem} in the caption {caption!r}; "
                "take the words from the caption, or pass spans=[(start, end)]"
            )
        taken[phrase] = number + 1
        found.append(Phrase(spans=(spans[number],)))
    return tuple(found)


def check_spans(caption: str, spans: Sequence[Span | Sequence[Span]], record: str = "") -> tuple[Phrase, ...]:
    """Phrases from character spans.

    Args:
        caption: The text.
        spans: Per phrase ``(start, end)``, half-open, or a list of such pairs for a phrase in several parts.
        record: Names the caption in errors.

    Returns:
        One phrase per entry.

    Raises:
        PhraseNotFoundError: A span lies outside the caption or holds no character other than white space.
        DataError: An entry is not a pair of integers.
    """
    phrases = []
    for entry in spans:
        if not isinstance(entry, tuple | list):
            raise DataError(f"{_where(record)}a span is (start, end) in characters, got {shown(entry)}")
        parts = [entry] if _is_span(entry) else list(entry)
        for part in parts:
            if not _is_span(part):
                raise DataError(f"{_where(record)}a span is (start, end) in characters, got {entry!r}")
            start, end = part
            if not 0 <= start < end <= len(caption) or not caption[start:end].strip():
                raise PhraseNotFoundError(
                    f"{_where(record)}span ({start}, {end}) holds no text of the caption {caption!r} "
                    f"({len(caption)} characters)"
                )
        if not parts:
            raise DataError(f"{_where(record)}a phrase without a span")
        phrases.append(Phrase(spans=tuple((int(start), int(end)) for start, end in parts)))
    return tuple(phrases)


def _is_span(value: object) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(end, int) for end in value)


def _where(record: str) -> str:
    return f"{record}: " if record else ""
