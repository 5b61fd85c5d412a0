"""The numbers 0..999 that a tokenizer has as single tokens: words, to a model that learned them so."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flmm_detseg.errors import ConfigError
from flmm_detseg.language.coordinates import MAX_COORDINATE
from flmm_detseg.language.items import Box, Polygon
from flmm_detseg.utils.tokenizer_file import read_offsets

# Widest gap between neighbouring words, ends of the axis included: rounding then moves an edge by 1 % of the image at
# most (by 2 % at the image's edge).
MAX_GAP = 20
_WIDTH = 3
# From a text to the characters of each of its tokens, half-open.
Offsets = Callable[[str], Sequence[tuple[int, int]]]


@dataclass(frozen=True)
class NumberWords:
    """Numbers that can be written, and how they are spelled.

    Attributes:
        values: Rising, within 0..999.
        padded: Three digits (``040``); False: as few as there are (``40``).
    """

    values: tuple[int, ...]
    padded: bool

    def __post_init__(self) -> None:
        """Raises ConfigError for values that are none, do not rise, or leave 0..999."""
        rising = all(first < second for first, second in zip(self.values, self.values[1:]))
        if not self.values or not rising or self.values[0] < 0 or self.values[-1] > MAX_COORDINATE:
            raise ConfigError(
                f"`values` of NumberWords must rise within 0..{MAX_COORDINATE}, got {self.values[:8]}"
            )

    def nearest(self, value: int) -> int:
        """The number that is written for a canonical one; of two equally near ones the smaller."""
        place = bisect_left(self.values, value)
        around = self.values[max(place - 1, 0) : place + 1]
        return min(around, key=lambda word: abs(word - value))

    def spell(self, value: int) -> str:
        """A number as it stands in text."""
        return f"{value:0{_WIDTH}d}" if self.padded else str(value)

    def box(self, box: Box) -> Box:
        """A box of numbers that can be written."""
        x1, y1, x2, y2 = map(self.nearest, box)
        return x1, y1, x2, y2

    def polygon(self, polygon: Polygon) -> Polygon:
        """A polygon of numbers that can be written; points that fall together stay one point where three are left."""
        points = [(self.nearest(x), self.nearest(y)) for x, y in polygon]
        different = [point for k, point in enumerate(points) if point != points[k - 1]]
        return tuple(different if len(different) >= 3 else points)


def number_words(offsets: Offsets) -> NumberWords | None:
    """The number words of a tokenizer, by one rule for every LMM.

    In a list of numbers each of 0..999 is looked at in two spellings, with as few digits as there are and with three. A
    spelling will do if no number that is a single token is further than :data:`MAX_GAP` from the next such one, nor the
    first and the last from 0 and 999. Of two that do, the one with more single tokens is taken (of equally many, the
    short one), and these are the number words.

    Args:
        offsets: The tokenizer: characters of each token of a text, special tokens aside.

    Returns:
        None where numbers are to be written as they are: all 0..999 are single tokens in the short spelling (nothing
        would change), or too few are (digits are tokens of their own: the model writes any number with them).
    """
    found: list[NumberWords] = []
    for padded in (False, True):
        spelled = {v: f"{v:0{_WIDTH}d}" if padded else str(v) for v in range(MAX_COORDINATE + 1)}
        values = tuple(value for value, word in spelled.items() if _is_token(word, offsets))
        edges = (0, *values, MAX_COORDINATE)
        if values and max(second - first for first, second in zip(edges, edges[1:])) <= MAX_GAP:
            found.append(NumberWords(values, padded))
    if not found:
        return None
    best = max(found, key=lambda words: len(words.values))  # the first of equals
    return None if not best.padded and len(best.values) == MAX_COORDINATE + 1 else best


def chosen_numbers(given: str | Mapping[str, Any] | NumberWords | None) -> NumberWords | None:
    """The number words that a config means.

    Args:
        given: Folder or hub name of the LMM whose tokenizer says which (:func:`number_words`), or the arguments of
            :class:`NumberWords`.

    Returns:
        None where numbers are to be written as they are.

    Raises:
        ConfigError: The tokenizer cannot be read, or the numbers are none.
    """
    if isinstance(given, str):
        return number_words(read_offsets(given))
    if isinstance(given, Mapping):
        if set(given) != {"values", "padded"}:
            raise ConfigError(f"`numbers` has the keys {sorted(given)}; `values` and `padded` are needed")
        return NumberWords(tuple(given["values"]), bool(given["padded"]))
    return given


def _is_token(word: str, offsets: Offsets) -> bool:
    """Whether a number is one token wherever it stands in a list: first, or after a space."""
    text = f"[{word}, {word} {word}]"
    starts = [1, len(word) + 3, 2 * len(word) + 4]
    spans = list(offsets(text))
    for start in starts:
        inside = [
            text[max(first, 0) : last] for first, last in spans if first < start + len(word) and last > start
        ]
        if len(inside) != 1 or inside[0].strip() != word:
            return False
    return True
