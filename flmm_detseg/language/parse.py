"""From the text of a model, damaged or not, to the answer it means."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flmm_detseg.language.items import Box, BoxItem, JointAnswer, MaskItem
from flmm_detseg.language.mask_runs import MaskRuns
from flmm_detseg.language.mask_words import ReadMask
from flmm_detseg.language.scanner import ItemSpan, ListScanner, RawBox
from flmm_detseg.language.task_tokens import SEG_TOKEN
from flmm_detseg.language.wording import MAX_ITEMS, SECTION_TAG, is_repeated

MAX_CHARS = 100_000
MAX_PROBLEMS = 100

# What distinguishes a tag inside a line of words from a word with a colon: the beginning of a list.
_LIST_AHEAD = re.compile(r"\s{0,4}(?:none\b|[^\n;:\[\]<>]{0,204}(?:\[|<|\(\s{0,4}[0-9]))", re.IGNORECASE)
_LINE_MARKUP = " \t*#>_`-"
_MAX_LINE_MARKUP = 8


@dataclass(frozen=True)
class ParseProblem:
    """A problem and the character at which it occurred.

    Attributes:
        kind: ``too_long``, ``text_before_sections``, ``second_answer``, ``repaired``, ``repeated_box``, or the reason
            of a lost item: ``truncated``, ``broken_item``, ``wrong_number_of_values``, ``no_coordinates`` (nor a mask
            in words, where these are read), ``no_label``, ``seg_among_boxes``, ``seg_without_label``,
            ``too_many_items``.
        position: Character position in the text.
    """

    kind: str
    position: int


@dataclass(frozen=True)
class ParseReport:
    """How well a text could be read.

    Attributes:
        num_parsed: Items that are in the answer, repaired ones included.
        num_bad: Items that were begun and lost. Dropped repetitions are neither parsed nor bad.
        problems: Losses in the order of the text, then repairs and repetitions; the first ``MAX_PROBLEMS``.
        num_repaired: Parsed items whose values were clamped, swapped, rounded or scaled, whose brackets or separators
            were missing, or whose mask in words is spelled otherwise than the format does.
        num_repeated: Boxes dropped as repetitions.
    """

    num_parsed: int
    num_bad: int
    problems: tuple[ParseProblem, ...]
    num_repaired: int
    num_repeated: int


@dataclass(frozen=True)
class ParsedAnswer:
    """An answer read from text.

    Attributes:
        answer: What could be read; boxes have no score yet.
        detection_spans: Where each box stands.
        segmentation_spans: Where each mask stands.
        report: What had to be repaired or dropped.
    """

    answer: JointAnswer
    detection_spans: tuple[ItemSpan, ...]
    segmentation_spans: tuple[ItemSpan, ...]
    report: ParseReport


class ParseLog:
    """What goes wrong while a text is read: counts, and the first problems."""

    def __init__(self) -> None:
        self.problems: list[ParseProblem] = []
        self.num_bad = self.num_repaired = self.num_repeated = 0

    def note(self, kind: str, position: int) -> None:
        """Remembers a problem."""
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(ParseProblem(kind, position))

    def lose(self, kind: str, position: int) -> None:
        """Counts an item that was begun and lost."""
        self.num_bad += 1
        self.note(kind, position)

    def repair(self, position: int) -> None:
        """Counts an item that was repaired."""
        self.num_repaired += 1
        self.note("repaired", position)

    def cut(self, text: str) -> str:
        """The part of a text that is read."""
        if len(text) > MAX_CHARS:
            self.note("too_long", MAX_CHARS)
        return text[:MAX_CHARS]

    def report(self, num_parsed: int) -> ParseReport:
        """What was noted."""
        return ParseReport(
            num_parsed, self.num_bad, tuple(self.problems), self.num_repaired, self.num_repeated
        )


def parse_answer(
    text: str, *, mask_token: str = SEG_TOKEN, bare_boxes: bool = False, read_mask: ReadMask | None = None
) -> ParsedAnswer:
    """Reads a joint answer; takes any string, never raises, and needs time linear in its length.

    Every complete item is kept, whatever stands around it. Tolerated:

    - Tags in any case and order, with markdown, more than once, missing; after a line break or not. A text without any
      tag is the answer; words before the first tag are the answer if there is no ``Answer:``.
    - A missing ``[``, ``]`` or ``;``; other brackets; line breaks as separators; several boxes after one label.
    - Swapped corners (put in order), values outside 0..999 (clamped), decimals: shares of the image when none exceeds 1
      (times 999), else rounded. Such an item counts as parsed and as repaired.
    - Boxes that repeat one of the same label (case ignored) with IoU above 0.95: the first stays.
    - A tail that was cut off: an item whose bracket is open at the very end is lost, since its last number may be too
      short; an item that never had brackets is taken as it stands. A mask keeps its complete parts.

    Bounds: ``MAX_CHARS`` characters are read, ``MAX_ITEMS`` items a section kept.

    Args:
        text: What the model wrote (special tokens kept, end-of-sequence token removed).
        mask_token: Stands for a mask that a head draws.
        bare_boxes: Boxes are written without brackets and commas (``car 1 2 3 4``): the last four numbers of an item
            are its box, and ``Detections:`` opens its section wherever it stands.
        read_mask: Finds the mask in the words of an item, beside outlines and mask tokens; with it, ``Segmentations:``
            opens its section wherever it stands. None: masks are not written in words.

    Returns:
        The answer, where its items stand, and the report.
    """
    log = ParseLog()
    text = log.cut(text)
    words: str | None = None
    preamble: str | None = None
    lists: dict[str, list[ListScanner]] = {"detections": [], "segmentations": []}
    bare = ("detections",) * bare_boxes + ("segmentations",) * (bare_boxes or read_mask is not None)
    for name, tag_start, start, end in _sections(text, bare):
        body = text[start:end].strip()
        if name == "":
            preamble = body or None
        elif name == "answer":
            if words is not None and body:
                log.note("second_answer", tag_start)
            words = words or body or None
        else:
            scanner = ListScanner(text, name == "detections", log.lose, mask_token, bare_boxes, read_mask)
            scanner.scan(start, end, is_tail=end == len(text))
            lists[name].append(scanner)
    if preamble is not None and words is not None:
        log.note("text_before_sections", 0)
    raw_boxes = [raw for scanner in lists["detections"] for raw in scanner.boxes]
    boxes, box_spans = collect_boxes(raw_boxes, log)
    masks, mask_spans = _collect_masks(lists["segmentations"], text, mask_token, log)
    answer = JointAnswer(
        answer=preamble if words is None else words,
        detections=boxes if lists["detections"] else None,
        segmentations=masks if lists["segmentations"] else None,
    )
    return ParsedAnswer(answer, box_spans, mask_spans, log.report(len(boxes) + len(masks)))


def _sections(text: str, bare: Sequence[str]) -> Iterator[tuple[str, int, int, int]]:
    """Yields ``(name, start of the tag, start, end of the body)``; the name of text before any tag is empty.

    ``bare``: lists whose items need no brackets.
    """
    name, tag_start, start = "", 0, 0
    for match in SECTION_TAG.finditer(text):
        found = str(match.lastgroup)
        opens_at = _section_start(text, match, found, name, bare)
        if opens_at is not None:
            if name or opens_at > 0:
                yield name, tag_start, start, opens_at
            name, tag_start, start = found, opens_at, match.end()
    yield name, tag_start, start, len(text)


def _section_start(
    text: str, match: re.Match[str], found: str, current: str, bare: Sequence[str]
) -> int | None:
    """Where the section of a tag starts (with the markup before it), or None if these are just words.

    In a list every tag opens a section; else one at the start of a line, or, for a list, before what looks like one
    (where its items have no brackets: before anything).
    """
    if current in ("detections", "segmentations"):
        return match.start()
    if found == "answer" and current == "answer":
        return None
    before = text[max(0, match.start() - _MAX_LINE_MARKUP) : match.start()]
    _, line_break, line = before.rpartition("\n")
    if (line_break or len(before) == match.start()) and not line.strip(_LINE_MARKUP):
        return match.start() - len(line)
    if found in bare or found != "answer" and (_LIST_AHEAD.match(text, match.end()) is not None):
        return match.start()
    return None


def collect_boxes(
    raw_boxes: Sequence[RawBox], log: ParseLog
) -> tuple[tuple[BoxItem, ...], tuple[ItemSpan, ...]]:
    """Boxes without those that repeat another of the same label (case ignored) and those beyond ``MAX_ITEMS``.

    Args:
        raw_boxes: As they were read, in order.
        log: Takes note of what is dropped or was repaired.

    Returns:
        The boxes, and where each stands.
    """
    boxes: list[BoxItem] = []
    spans: list[ItemSpan] = []
    seen: dict[str, list[Box]] = {}
    for raw in raw_boxes:
        if len(boxes) == MAX_ITEMS:
            log.lose("too_many_items", raw.span.start)
            continue
        same_label = seen.setdefault(raw.label.casefold(), [])
        if is_repeated(raw.box, same_label):
            log.num_repeated += 1
            log.note("repeated_box", raw.span.start)
            continue
        same_label.append(raw.box)
        boxes.append(BoxItem(raw.label, raw.box))
        spans.append(raw.span)
        if raw.repaired:
            log.repair(raw.span.start)
    return tuple(boxes), tuple(spans)


def _collect_masks(
    scanners: Sequence[ListScanner], text: str, mask_token: str, log: ParseLog
) -> tuple[tuple[MaskItem, ...], tuple[ItemSpan, ...]]:
    masks: list[MaskItem] = []
    spans: list[ItemSpan] = []
    ordinals: dict[int, int] = {}
    if any(scanner.masks for scanner in scanners):
        ordinals = {match.start(): i for i, match in enumerate(re.finditer(re.escape(mask_token), text))}
    for raw in (raw for scanner in scanners for raw in scanner.masks):
        if len(masks) == MAX_ITEMS:
            log.lose("too_many_items", raw.span.start)
            continue
        if raw.content is None:
            masks.append(MaskItem(raw.label, seg_index=ordinals[raw.span.values[0][0]]))
        elif isinstance(raw.content, MaskRuns):
            masks.append(MaskItem(raw.label, runs=raw.content))
        else:
            masks.append(MaskItem(raw.label, polygons=raw.content))
        spans.append(raw.span)
        if raw.repaired:
            log.repair(raw.span.start)
    return tuple(masks), tuple(spans)
