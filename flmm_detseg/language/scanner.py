"""Reads one list section (``label [1, 2, 3, 4]; label <SEG>``) token by token: linear, never raises, loses no more
than single items.

What is tolerated is said at :func:`flmm_detseg.language.parse.parse_answer`.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from flmm_detseg.language.coordinates import MAX_COORDINATE
from flmm_detseg.language.items import Polygon
from flmm_detseg.language.mask_runs import MaskRuns
from flmm_detseg.language.mask_words import ReadMask
from flmm_detseg.language.task_tokens import SEG_TOKEN
from flmm_detseg.language.wording import EMPTY_SECTION, MAX_LABEL_CHARS, normalise_label

_NUMBER = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)", re.ASCII)
_OPEN, _CLOSE, _SEPARATOR, _COMMA, _NOISE = "[({", "])}", ";\n\uff1b", ",\uff0c", "<>"
_NUM_BOX_VALUES, _MIN_POLYGON_VALUES = 4, 6


@functools.cache
def _tokens(mask_token: str) -> re.Pattern[str]:
    marks = r"[\[\](){}<>;,\n\uff1b\uff0c]|[^\s\[\](){}<>;,\uff1b\uff0c]+"
    return re.compile(f"{re.escape(mask_token)}|{marks}")


class Number(NamedTuple):
    """A number of the text and where it stands."""

    value: float
    is_decimal: bool
    start: int
    end: int


@dataclass(frozen=True)
class ItemSpan:
    """Where an item stands in the text, half-open character positions.

    Attributes:
        start: First character of its label (of its values, when it shares the label of the item before it).
        end: After its last character, closing bracket included, separator not.
        values: The characters of each number, or of the mask token, run lengths or place.
    """

    start: int
    end: int
    values: tuple[tuple[int, int], ...]


class RawBox(NamedTuple):
    """A complete box."""

    label: str
    box: tuple[int, int, int, int]
    span: ItemSpan
    repaired: bool


class RawMask(NamedTuple):
    """A complete mask: polygons, run lengths, or (None) that of the mask token where its values stand."""

    label: str
    content: tuple[Polygon, ...] | MaskRuns | None
    span: ItemSpan
    repaired: bool


@dataclass
class _Group:
    """Numbers inside brackets."""

    start: int
    numbers: list[Number] = field(default_factory=list)
    spoiled: bool = False


def to_bins(numbers: list[Number]) -> tuple[list[int], bool]:
    """Canonical integers, and whether anything had to be repaired.

    Decimals of which none exceeds 1 are shares of the image (times 999); other decimals are rounded half up. Values
    outside 0..999 are clamped.

    Args:
        numbers: Of one item.

    Returns:
        Integers in 0..999, and the flag.
    """
    shares = any(number.is_decimal for number in numbers) and all(
        -1 <= number.value <= 1 for number in numbers
    )
    bins, repaired = [], False
    for number in numbers:
        value = number.value * MAX_COORDINATE if shares else number.value
        clamped = min(max(value, 0.0), float(MAX_COORDINATE))
        bins.append(math.floor(clamped + 0.5))
        repaired = repaired or clamped != value or number.is_decimal
    return bins, repaired


class ListScanner:
    """State of the item being read; complete items go to ``boxes`` or ``masks``, trouble to ``report``.

    Args:
        text: The whole text.
        wants_boxes: Detections if true, else Segmentations.
        report: Called with ``(kind, position)`` for each item that is lost.
        mask_token: Stands for a mask that a head draws.
        bare_boxes: Boxes have neither brackets nor commas: the last four numbers of an item are its box.
        read_mask: Finds the mask at the end of an item of words alone; None: such an item is lost.
    """

    def __init__(
        self,
        text: str,
        wants_boxes: bool,
        report: Callable[[str, int], None],
        mask_token: str = SEG_TOKEN,
        bare_boxes: bool = False,
        read_mask: ReadMask | None = None,
    ) -> None:
        self._read_mask = read_mask
        self.text, self.wants_boxes, self._report = text, wants_boxes, report
        self.mask_token, self._bare = mask_token, bare_boxes and wants_boxes
        self.boxes: list[RawBox] = []
        self.masks: list[RawMask] = []
        self._start_item("")

    def _start_item(self, label: str) -> None:
        """Forgets the item; ``label`` is what a following group without a label of its own may share."""
        self._shared_label = label
        self._label_start = self._label_end = -1
        self._loose: list[Number] = []  # numbers outside brackets, linked by commas
        self._loose_label_end = -1
        self._after_comma = False
        self._group: _Group | None = None
        self._parts: list[Polygon] = []
        self._part_values: list[tuple[int, int]] = []
        self._parts_start = self._parts_end = -1
        self._repaired = self._lost = False

    def scan(self, start: int, end: int, is_tail: bool) -> None:
        """Reads ``text[start:end]``; ``is_tail``: nothing follows, so an open bracket means a cut-off item."""
        for match in _tokens(self.mask_token).finditer(self.text, start, end):
            token, position = match[0], match.start()
            if token == self.mask_token:
                self._seg(position, match.end())
            elif token in _OPEN:
                self._open(position)
            elif token in _CLOSE:
                self._close(match.end())
            elif token in _SEPARATOR:
                # A line break inside brackets is only white space.
                group = self._group
                if token != "\n" or group is None or group.spoiled or not group.numbers:
                    self._separate()
            elif token in _COMMA:
                self._after_comma = True
            elif token not in _NOISE:
                self._word(token, position, match.end())
        if is_tail and self._group is not None and self._group.numbers:
            self._lose("truncated", self._group.start)
        self._separate()

    def _label(self) -> str:
        if self._label_start < 0:
            return self._shared_label
        # Bounded: a group may follow a group, and each asks for the label they share.
        end = min(self._label_end, self._label_start + 4 * MAX_LABEL_CHARS)
        return normalise_label(self.text[self._label_start : end])

    def _start(self, fallback: int) -> int:
        return self._label_start if self._label_start >= 0 else fallback

    def _lose(self, kind: str, position: int) -> None:
        self._report(kind, position)
        self._group = None
        self._loose = []
        self._lost = self._repaired = True  # of a mask with several parts the others stay

    def _word(self, token: str, start: int, end: int) -> None:
        number = None
        if _NUMBER.fullmatch(token):
            # float() of a long run of digits is at worst infinity, which the clamp takes.
            number = Number(float(token), "." in token, start, end)
        group = self._group
        if group is not None and number is not None:
            group.numbers.append(number)
            if group.spoiled:
                self._label_start = -1
            return
        if group is not None and group.numbers:
            if self.wants_boxes and len(group.numbers) == _NUM_BOX_VALUES and not group.spoiled:
                self._repaired = True  # `]` and `;` are missing
                self._take(group.numbers, group.start, group.numbers[-1].end)
            elif not group.spoiled:
                group.spoiled = True
                self._repaired = True
                if self._parts:
                    self._finish_mask()
                self._start_item("")  # these words may be the label of an item whose `[` follows
                self._group = group
        elif self._parts:
            self._finish_mask()
        elif self._lost:
            self._start_item("")
        if number is not None and self._loose and (self._after_comma or self._bare):
            self._loose.append(number)
        else:
            self._loose = [] if number is None else [number]
            self._loose_label_end = self._label_end
        if self._label_start < 0:
            self._label_start = start
        self._label_end = end
        self._after_comma = False

    def _open(self, position: int) -> None:
        group = self._group
        if group is not None and group.numbers:
            if group.spoiled:
                self._lose("broken_item", group.start)
            else:
                self._repaired = True
                self._take(group.numbers, group.start, group.numbers[-1].end)
        self._loose = []
        self._group = _Group(position)

    def _close(self, end: int) -> None:
        group, self._group = self._group, None
        if group is None:
            if self._loose:
                self._take_loose(end)
        elif group.spoiled:
            self._lose("broken_item", group.start)
            self._label_start = -1
        elif group.numbers:
            self._take(group.numbers, group.start, end)

    def _seg(self, start: int, end: int) -> None:
        if self._group is not None and self._group.numbers:
            self._lose("broken_item", self._group.start)
        self._group = None
        if self._parts:
            self._finish_mask()
        label = self._label()
        if self.wants_boxes or not label:
            self._report("seg_without_label" if not label else "seg_among_boxes", start)
        else:
            span = ItemSpan(self._start(start), end, ((start, end),))
            self.masks.append(RawMask(label, None, span, self._repaired))
        self._start_item(label)

    def _separate(self) -> None:
        """Ends the item."""
        group = self._group
        if group is not None and group.numbers:
            if group.spoiled:
                self._lose("broken_item", group.start)
            else:
                self._repaired = True
                self._take(group.numbers, group.start, group.numbers[-1].end)
        elif self._loose and (
            self._loose_label_end >= 0 or (self._bare and len(self._loose) > _NUM_BOX_VALUES)
        ):
            self._take_loose(self._loose[-1].end)
        elif self._label_start >= 0 and not self._parts and not self._lost:
            words = self._label()
            if words and words.casefold() != EMPTY_SECTION:
                self._take_words()
        if self._parts:
            self._finish_mask()
        self._start_item("")

    def _take_words(self) -> None:
        """An item of words alone: a mask in words, if any."""
        start = self._label_start
        words = self.text[start : self._label_end]
        mask = None if self._read_mask is None or self.wants_boxes else self._read_mask(words)
        if mask is None:
            self._report("no_coordinates", start)
            return
        label = normalise_label(words[: min(mask.start, 4 * MAX_LABEL_CHARS)])
        if not label:
            self._report("no_label", start)
            return
        place = (start + mask.start, start + mask.end)
        repaired = self._repaired or not mask.as_written
        self.masks.append(RawMask(label, mask.content, ItemSpan(start, place[1], (place,)), repaired))

    def _take_loose(self, end: int) -> None:
        """An item without its opening bracket: the trailing numbers that commas link."""
        numbers, self._loose = self._loose, []
        self._label_end = self._loose_label_end
        if self._bare and len(numbers) > _NUM_BOX_VALUES:  # numbers at the end of the label
            self._label_end = numbers[-_NUM_BOX_VALUES - 1].end
            numbers = numbers[-_NUM_BOX_VALUES:]
        if self._label_end < 0:
            self._label_start = -1
        self._repaired = self._repaired or not self._bare
        self._take(numbers, numbers[0].start, end)

    def _take(self, numbers: list[Number], start: int, end: int) -> None:
        """A bracket group is complete: a box, or one part of a mask."""
        self._group = None
        label, start_of_item = self._label(), self._start(start)
        if not label:
            self._report("no_label", start)
            self._start_item("")
            return
        bins, repaired = to_bins(numbers)
        values = tuple((number.start, number.end) for number in numbers)
        if self.wants_boxes:
            if len(bins) != _NUM_BOX_VALUES:
                self._report("wrong_number_of_values", start)
            else:
                x1, y1, x2, y2 = bins
                swapped = x1 > x2 or y1 > y2
                box = (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
                repaired = repaired or swapped or self._repaired
                self.boxes.append(RawBox(label, box, ItemSpan(start_of_item, end, values), repaired))
            self._start_item(label)
        elif len(bins) < _MIN_POLYGON_VALUES or len(bins) % 2:
            self._lose("wrong_number_of_values", start)
        else:
            self._parts.append(tuple(zip(bins[::2], bins[1::2])))
            self._part_values.extend(values)
            self._repaired = self._repaired or repaired
            self._parts_start = start_of_item if self._parts_start < 0 else self._parts_start
            self._parts_end = end

    def _finish_mask(self) -> None:
        label = self._label()
        span = ItemSpan(self._parts_start, self._parts_end, tuple(self._part_values))
        self.masks.append(RawMask(label, tuple(self._parts), span, self._repaired))
        self._start_item(label)
