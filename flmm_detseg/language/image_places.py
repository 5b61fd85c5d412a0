"""The nine places of an image in words: ``at the top left``, ``in the centre``."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from flmm_detseg.language.items import Polygon

_ROWS, _COLUMNS = ("top", "", "bottom"), ("left", "", "right")
# Canonical coordinates of the borders between thirds.
_BORDERS = (0, 333, 666, 999)
_AXES = {"top": (0, 0), "upper": (0, 0), "bottom": (0, 2), "lower": (0, 2), "left": (1, 0), "right": (1, 2)}
_MIDDLES = ("centre", "center", "middle")
_WORDS = "|".join((*_AXES, *_MIDDLES))
_PHRASE = re.compile(
    rf"(?<!\S)(?:at|in|on|to)\s+the\s+({_WORDS})(?:[\s-]+({_WORDS}))?(?:\s+(?:corner|side|part))?"
    r"(?:\s+of\s+the\s+(?:image|picture))?\s*[.,]?\Z",
    re.IGNORECASE | re.ASCII,
)


def _square(row: int, column: int) -> Polygon:
    x0, x1, y0, y1 = (_BORDERS[k] for k in (column, column + 1, row, row + 1))
    return (x0, y0), (x1, y0), (x1, y1), (x0, y1)


def _phrase(row: int, column: int) -> str:
    words = " ".join(word for word in (_ROWS[row], _COLUMNS[column]) if word)
    return f"at the {words}" if words else "in the centre"


# Words of each ninth of the image, by its outline in canonical coordinates.
PLACES: dict[Polygon, str] = {
    _square(row, column): _phrase(row, column) for row in range(3) for column in range(3)
}


class PlaceWords(NamedTuple):
    """A place at the end of some words.

    Attributes:
        start: Its first character.
        outline: The ninth of the image, one of :data:`PLACES`.
        as_written: Whether these are the words of :data:`PLACES`.
    """

    start: int
    outline: Polygon
    as_written: bool


def place_of(mask: np.ndarray) -> Polygon:
    """The ninth of the image in which the middle of a mask's box lies.

    Args:
        mask: bool ``[H, W]``, not empty.

    Returns:
        Its outline, one of :data:`PLACES`.
    """
    ninth = []
    for axis in (0, 1):
        marked = np.flatnonzero(mask.any(1 - axis))
        ninth.append(int(3 * (marked[0] + marked[-1] + 1) // (2 * mask.shape[axis])))
    return _square(*ninth)


def place_at_end(words: str) -> PlaceWords | None:
    """The place with which words end ("the dog in the upper left corner").

    Args:
        words: A label and its place.

    Returns:
        The place; None where there is none, or one that is nowhere ("at the left right").
    """
    # The window bounds the time of a long text; a phrase is never longer.
    found = _PHRASE.search(words, max(0, len(words) - 200))
    if found is None:
        return None
    ninth: list[int | None] = [None, None]
    for word in filter(None, (found[1].lower(), (found[2] or "").lower())):
        if word in _MIDDLES:
            continue
        axis, third = _AXES[word]
        if ninth[axis] is not None:
            return None
        ninth[axis] = third
    outline = _square(*(1 if third is None else third for third in ninth))
    return PlaceWords(found.start(), outline, found[0] == PLACES[outline])
