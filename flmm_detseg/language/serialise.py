"""From an answer to its text.

::

    Answer: two cars are parked
    Detections: car [12, 40, 380, 912]; car [402, 38, 777, 930]
    Segmentations: car <SEG>; dog [10, 12, 50, 12, 50, 80] [60, 60, 70, 60, 70, 75]

An absent section is left out, an empty one is ``none``. A polygon is one flat list ``[x, y, x, y, ...]``; the parts of
a mask stand one after another.

In words (:attr:`TemplateForm.words`), with numbers of three digits::

    answer: two cars are parked
    detections: car 012 040 380 912; car 402 038 777 930
    segmentations: car [SEG]; car [SEG]

Masks may also be run lengths or places (:class:`~flmm_detseg.language.joint_template.JointTemplate`)::

    Segmentations: car YjA0NDAwMDAwPg==; dog at the top left
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.language.image_places import PLACES
from flmm_detseg.language.items import Box, BoxItem, JointAnswer, MaskItem
from flmm_detseg.language.number_words import NumberWords
from flmm_detseg.language.task_tokens import SEG_TOKEN
from flmm_detseg.language.wording import (
    EMPTY_SECTION,
    MAX_ITEMS,
    SECTION_TAGS,
    is_repeated,
    normalise_answer,
    normalise_label,
)


@dataclass(frozen=True)
class SerialiseOptions:
    """How an answer is written.

    Attributes:
        box_order: ``"area"``: largest first (ties by place); ``"raster"``: by top edge, then left edge.
        max_boxes: More boxes than that lose the smallest ones, in either order.
        max_masks: More masks than that lose the last ones.
    """

    box_order: Literal["area", "raster"] = "area"
    max_boxes: int = 100
    max_masks: int = 100

    def __post_init__(self) -> None:
        """Raises ConfigError for an unknown order or a cap outside 1..MAX_ITEMS."""
        if self.box_order not in ("area", "raster"):
            raise ConfigError(f"box_order is {self.box_order!r}; use 'area' or 'raster'")
        if not (1 <= self.max_boxes <= MAX_ITEMS and 1 <= self.max_masks <= MAX_ITEMS):
            raise ConfigError(f"max_boxes and max_masks must be in 1..{MAX_ITEMS}, got {self}")


@dataclass(frozen=True)
class TemplateForm:
    """The spelling of the template.

    Attributes:
        words: Tags in lower case, boxes without brackets and commas.
        numbers: Words that numbers are rounded to and spelled with; None: 0..999 as they are.
        mask_token: Stands for a mask that a head draws.
        places: Outlines are those of ninths of the image, and written as words.
    """

    words: bool = False
    numbers: NumberWords | None = None
    mask_token: str = SEG_TOKEN
    places: bool = False


@dataclass(frozen=True)
class SerialisedAnswer:
    """A written answer.

    Attributes:
        text: The text.
        answer: What the text says, exactly what the parser reads from it: labels normalised, boxes in order without
            scores, numbers rounded to those written, references to mask tokens numbered from 0.
        section_spans: Section name -> characters ``(start, end)``, half-open, tag included and the line break after
            it too: the spans of the present sections cut the whole text into pieces.
        detection_order: For each written box its index in the given detections (masks keep the given order).
    """

    text: str
    answer: JointAnswer
    section_spans: dict[str, tuple[int, int]]
    detection_order: tuple[int, ...]


_DEFAULT, _PLAIN = SerialiseOptions(), TemplateForm()


def serialise(
    answer: JointAnswer, options: SerialiseOptions = _DEFAULT, form: TemplateForm = _PLAIN
) -> SerialisedAnswer:
    """Writes an answer so that :func:`~flmm_detseg.language.parse.parse_answer` reads the same from it.

    Lost on the way, and visible in the result: scores, boxes that repeat another of the same label (IoU above 0.95) or
    stand beyond the cap, and what :func:`~flmm_detseg.language.wording.normalise_label` removes. Words that are empty
    after normalising leave out the answer section.

    Args:
        answer: Items in canonical coordinates.
        options: Order and caps.
        form: Spelling.

    Returns:
        Text, canonical answer, spans and orders.

    Raises:
        DataError: A label is empty after normalising.
    """
    words = None
    if answer.answer is not None:
        words = normalise_answer(answer.answer.replace(form.mask_token, " ")) or None
    detections = answer.detections or ()
    if form.numbers is not None:
        detections = tuple(replace(item, box=form.numbers.box(item.box)) for item in detections)
    boxes, box_order = canonical_boxes(detections, options)
    masks = _canonical_masks((answer.segmentations or ())[: options.max_masks], form)
    canonical = JointAnswer(
        answer=words,
        detections=None if answer.detections is None else boxes,
        segmentations=None if answer.segmentations is None else masks,
    )
    bodies: dict[str, str] = {}
    if words is not None:
        bodies["answer"] = words
    if canonical.detections is not None:
        bodies["detections"] = "; ".join(_write_box(item, form) for item in boxes) or EMPTY_SECTION
    if canonical.segmentations is not None:
        bodies["segmentations"] = "; ".join(_write_mask(item, form) for item in masks) or EMPTY_SECTION
    text, spans = "", {}
    for index, (name, body) in enumerate(bodies.items()):
        start = len(text)
        tag = SECTION_TAGS[name].lower() if form.words else SECTION_TAGS[name]
        text += f"{tag} {body}" + ("\n" if index + 1 < len(bodies) else "")
        spans[name] = (start, len(text))
    return SerialisedAnswer(text, canonical, spans, box_order)


def _label(label: str) -> str:
    normalised = normalise_label(label)
    if not normalised:
        raise DataError(
            f"label {label!r} is empty once brackets, separators and line breaks are gone; name the object"
        )
    return normalised


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def canonical_boxes(
    items: Sequence[BoxItem], options: SerialiseOptions
) -> tuple[tuple[BoxItem, ...], tuple[int, ...]]:
    """Boxes as written: repeated and surplus ones are gone.

    Args:
        items: Boxes with the numbers that are written.
        options: Order and caps.

    Returns:
        Boxes with normalised labels and without scores, and their indices in ``items``.

    Raises:
        DataError: A label is empty after normalising.
    """

    def raster(entry: tuple[int, BoxItem]) -> tuple[int, int, int, int, str]:
        x1, y1, x2, y2 = entry[1].box
        return y1, x1, y2, x2, entry[1].label

    entries = [(index, BoxItem(_label(item.label), item.box)) for index, item in enumerate(items)]
    entries.sort(key=raster)
    entries.sort(key=lambda entry: _area(entry[1].box), reverse=True)  # stable: ties stay in raster order
    seen: dict[str, list[Box]] = {}
    kept: list[tuple[int, BoxItem]] = []
    for entry in entries:
        same_label = seen.setdefault(entry[1].label.casefold(), [])
        if len(kept) < options.max_boxes and not is_repeated(entry[1].box, same_label):
            same_label.append(entry[1].box)
            kept.append(entry)
    if options.box_order == "raster":
        kept.sort(key=raster)
    return tuple(item for _, item in kept), tuple(index for index, _ in kept)


def _canonical_masks(items: Sequence[MaskItem], form: TemplateForm) -> tuple[MaskItem, ...]:
    masks, num_seg = [], 0
    for item in items:
        written = replace(item, label=_label(item.label))
        if item.seg_index is not None:
            written = replace(written, seg_index=num_seg)
            num_seg += 1
        elif item.polygons is not None and form.numbers is not None and not form.places:
            written = replace(written, polygons=tuple(map(form.numbers.polygon, item.polygons)))
        masks.append(written)
    return tuple(masks)


def _write_box(item: BoxItem, form: TemplateForm) -> str:
    numbers = _spelled(item.box, form)
    return f"{item.label} {' '.join(numbers)}" if form.words else f"{item.label} [{', '.join(numbers)}]"


def _write_mask(item: MaskItem, form: TemplateForm) -> str:
    if item.runs is not None:
        return f"{item.label} {item.runs.to_base64()}"
    if item.polygons is None:
        return f"{item.label} {form.mask_token}"
    if form.places:
        return f"{item.label} {PLACES[item.polygons[0]]}"
    parts = (", ".join(_spelled(chain.from_iterable(polygon), form)) for polygon in item.polygons)
    return item.label + "".join(f" [{part}]" for part in parts)


def _spelled(values: Iterable[int], form: TemplateForm) -> list[str]:
    return [str(value) if form.numbers is None else form.numbers.spell(value) for value in values]
