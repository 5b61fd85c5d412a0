"""Masks in words, at the end of an item: run lengths (``ring YjA0NDAwMDAwPg==``), places (``ring at the top left``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from flmm_detseg.errors import DataError
from flmm_detseg.language.image_places import place_at_end
from flmm_detseg.language.items import Polygon
from flmm_detseg.language.mask_runs import MaskRuns


class MaskWords(NamedTuple):
    """A mask read from words.

    Attributes:
        start: Its first character in the words; the label stands before it.
        end: After its last one.
        content: What :class:`~flmm_detseg.language.items.MaskItem` has: run lengths, or polygons.
        as_written: Whether the format would have written just these characters.
    """

    start: int
    end: int
    content: MaskRuns | tuple[Polygon, ...]
    as_written: bool


# From the words of an item to its mask; None: they end with none.
ReadMask = Callable[[str], MaskWords | None]


def read_runs(words: str, size: tuple[int, int]) -> MaskWords | None:
    """Run lengths in Base64, the last of some words.

    Args:
        words: Of an item, at least one, without white space at their ends.
        size: Rows and columns of their grid.

    Returns:
        The mask; None where the word is none, or its runs do not cover the grid.
    """
    last = words.rsplit(maxsplit=1)[-1]
    start, code = len(words) - len(last), last.rstrip(".,\"'`")
    try:
        runs = MaskRuns.from_base64(code, size)
    except DataError:
        return None
    return MaskWords(start, start + len(code), runs, last == runs.to_base64())


def read_place(words: str) -> MaskWords | None:
    """One of nine places, see :func:`~flmm_detseg.language.image_places.place_at_end`.

    Args:
        words: Of an item.

    Returns:
        The ninth of the image as a mask; None where the words end with no place.
    """
    found = place_at_end(words)
    if found is None:
        return None
    return MaskWords(found.start, len(words), (found.outline,), found.as_written)
