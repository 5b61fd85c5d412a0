r"""The boxes of Qwen-VL: a JSON list of ``{"bbox_2d": [x0, y0, x1, y1], "label": ...}``.

::

    two cars are parked
    ```json
    [
        {"bbox_2d": [12, 40, 380, 912], "label": "car"},
        {"bbox_2d": [402, 38, 777, 930], "label": "car"}
    ]
    ```

Qwen3-VL counts 0..1000 along each axis, Qwen2.5-VL the pixels of the image as its processor resizes it.
Source: https://github.com/QwenLM/Qwen3-VL (cookbooks, ``2d_grounding``).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any

from flmm_detseg.errors import ConfigError
from flmm_detseg.language.coordinates import MAX_COORDINATE
from flmm_detseg.language.items import Box, BoxItem, JointAnswer
from flmm_detseg.language.parse import ParsedAnswer, ParseLog, collect_boxes
from flmm_detseg.language.scanner import ItemSpan, RawBox
from flmm_detseg.language.serialise import SerialisedAnswer, SerialiseOptions, canonical_boxes
from flmm_detseg.language.task_tokens import remove_special_tokens
from flmm_detseg.language.text_format import DEFAULT_OPTIONS, TextFormat
from flmm_detseg.language.wording import normalise_label
from flmm_detseg.utils.whole_files import dump_json

FRAMES = ("relative", "pixels")
_GRID = 1000
# Longest object that is read as JSON: bounds the time of objects that do not end.
_MAX_OBJECT = 2000
_BOX_KEYS, _LABEL_KEYS = ("bbox_2d", "bbox"), ("label", "name", "category")
# Where the list begins.
_OPENING = re.compile(
    r"```(?:[ \t]*json)?|\[\s*(?:[{\]]|null\b|\Z)|\{\s*[\"']|\A\s*null\s*\Z", re.IGNORECASE | re.ASCII
)
_CLOSING = re.compile(r"(?:[\s,\[\]}]|null\b|```)*", re.IGNORECASE | re.ASCII)
_NUMBER = re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?(?:e[-+]?[0-9]{1,3})?", re.IGNORECASE | re.ASCII)
_BOX = re.compile(r"[\"']?\bbbox(?:_2d)?[\"']?\s*:\s*[\[(]([^\[\](){}]*)[\])]", re.ASCII)
_LABEL = re.compile(r"[\"']?\b(?:label|name|category)[\"']?\s*:\s*[\"']([^\"'\n{}]*)[\"']", re.ASCII)
_DECODER = json.JSONDecoder()


class QwenJSON(TextFormat):
    """See the module. Words stand before the list; there are no masks.

    Args:
        frame: ``"relative"`` (Qwen3-VL): 0..1000. ``"pixels"`` (Qwen2.5-VL): pixels of the resized image; the next
            three arguments must be the processor's.
        side: Side of an image token in pixels: sizes are multiples of it.
        min_pixels: Least area of the resized image.
        max_pixels: Greatest area.
        fenced: Put the list between lines of backquotes.

    Raises:
        ConfigError: Unknown frame, or sizes that no image can have.
    """

    name = "qwen_json"
    sections = ("answer", "detections")
    objects_question = "Locate every object in the image."

    def __init__(
        self,
        frame: str = "relative",
        side: int = 28,
        min_pixels: int = 4 * 28 * 28,
        max_pixels: int = 16384 * 28 * 28,
        fenced: bool = True,
    ) -> None:
        if frame not in FRAMES:
            raise ConfigError(f"`frame` of QwenJSON is {frame!r}; allowed: {', '.join(FRAMES)}")
        if side < 1 or not side * side <= min_pixels <= max_pixels:
            raise ConfigError(
                f"QwenJSON: `side`={side}, `min_pixels`={min_pixels}, `max_pixels`={max_pixels}; take those of the "
                "model's preprocessor_config.json"
            )
        self.frame, self.fenced = frame, fenced
        self.side, self.min_pixels, self.max_pixels = side, min_pixels, max_pixels

    def ask(self, question: str, sections: Iterable[str]) -> str:
        """See the base class."""
        sections = tuple(sections)
        self.check_sections(sections)
        question = remove_special_tokens(question).strip()
        if "detections" not in sections:
            return question
        then = "Then locate every object in the image and output" if "answer" in sections else "Output"
        return f"{question} {then} the bounding box coordinates in JSON format.".strip()

    def write(
        self, answer: JointAnswer, image_size: tuple[int, int], options: SerialiseOptions = DEFAULT_OPTIONS
    ) -> SerialisedAnswer:
        """See the base class."""
        if answer.segmentations is not None:
            self.check_sections(["segmentations"])
        words = None if answer.answer is None else _plain_words(answer.answer) or None
        scale = self._scale(image_size)
        items = [
            BoxItem(item.label, _canonical(_written(item.box, scale), scale))
            for item in answer.detections or ()
        ]
        boxes, order = canonical_boxes(items, options)
        pieces: dict[str, str] = {} if words is None else {"answer": words}
        if answer.detections is not None:
            objects = ",\n".join(
                f'\t{{"bbox_2d": {list(_written(box.box, scale))}, "label": {_quoted(box.label)}}}'
                for box in boxes
            )
            listed = f"[\n{objects}\n]" if boxes else "[]"
            pieces["detections"] = f"```json\n{listed}\n```" if self.fenced else listed
        text, spans = "", {}
        for index, (name, body) in enumerate(pieces.items()):
            start = len(text)
            text += body + ("\n" if index + 1 < len(pieces) else "")
            spans[name] = (start, len(text))
        said = JointAnswer(words, None if answer.detections is None else boxes)
        return SerialisedAnswer(text, said, spans, order)

    def parse(self, text: str, image_size: tuple[int, int]) -> ParsedAnswer:
        """See the base class.

        Tolerated: no fence, a fence of another kind, words before the list or after it, one object instead of a list,
        a list that was cut off (its complete boxes stay), missing quotes and commas, ``bbox`` for ``bbox_2d``,
        ``name`` or ``category`` for ``label``, swapped corners, values outside the image (clamped), decimals (shares of
        the image where none exceeds 1). ``null``, ``[]`` and a ``null`` box say that nothing is there. A text without
        any of these is the answer.
        """
        log = ParseLog()
        text = log.cut(text)
        opening = _OPENING.search(text)
        if opening is None:
            return ParsedAnswer(JointAnswer(text.strip() or None), (), (), log.report(0))
        scale, raw = self._scale(image_size), []
        place = opening.start()
        end = opening.end() if opening[0].startswith("`") else place
        while (start := text.find("{", place)) >= 0:
            place, found = _read_object(text, start, scale, log)
            if found is not None:
                raw.append(found)
            end = max(end, place)
        boxes, spans = collect_boxes(raw, log)
        words = text[: opening.start()].strip()
        if not words:
            words = _CLOSING.sub("", text[end:], count=1).strip()
        return ParsedAnswer(JointAnswer(words or None, boxes), spans, (), log.report(len(boxes)))

    def _scale(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Largest x and y that are written."""
        if self.frame == "relative":
            return _GRID, _GRID
        height, width = resized_size(image_size, self.side, self.min_pixels, self.max_pixels)
        return width, height


def resized_size(image_size: tuple[int, int], side: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """To what size the processor of Qwen2-VL and its successors resizes an image.

    Args:
        image_size: ``(H, W)``.
        side: Sizes are multiples of it.
        min_pixels: Least area.
        max_pixels: Greatest area.

    Returns:
        ``(H, W)``.

    Source: Qwen2-VL, arXiv 2409.12191, section 2.1 (dynamic resolution), and the processors of transformers.
    """
    height, width = image_size
    rows, cols = (round(length / side) * side for length in (height, width))
    if rows * cols > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows, cols = (max(side, math.floor(length / shrink / side) * side) for length in (height, width))
    elif rows * cols < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows, cols = (math.ceil(length * grow / side) * side for length in (height, width))
    return rows, cols


def _plain_words(answer: str) -> str:
    """The words of an answer without what would begin a list: idempotent."""
    words = remove_special_tokens(answer.replace("\r\n", "\n")).strip()
    while _OPENING.search(words):
        words = _OPENING.sub(" ", words).strip()
    return words


def _quoted(label: str) -> str:
    return dump_json(label)


def _written(box: Box, scale: tuple[int, int]) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = (
        math.floor(value / MAX_COORDINATE * length + 0.5) for value, length in zip(box, scale * 2)
    )
    return x0, y0, x1, y1


def _canonical(values: Iterable[float], scale: tuple[int, int]) -> Box:
    """Canonical integers of values of 0..scale, clamped."""
    x0, y0, x1, y1 = (
        math.floor(min(max(value / length, 0.0), 1.0) * MAX_COORDINATE + 0.5)
        for value, length in zip(values, scale * 2)
    )
    return x0, y0, x1, y1


def _read_object(text: str, start: int, scale: tuple[int, int], log: ParseLog) -> tuple[int, RawBox | None]:
    """Where to go on after the object that begins at ``start``, and its box."""
    window = text[start : start + _MAX_OBJECT]
    try:
        content, length = _DECODER.raw_decode(window)
    except (ValueError, RecursionError):
        return _broken_object(text, start, scale, log)
    end = start + length
    key = next((key for key in _BOX_KEYS if key in content), None)
    if key is None:
        if "{" in window[1:length]:  # objects within it
            return start + 1, None
        log.lose("no_coordinates", start)
        return end, None
    if content[key] is None:
        return end, None
    found = next((content[name] for name in _LABEL_KEYS if isinstance(content.get(name), str)), "")
    box = next((match for match in _BOX.finditer(text, start, end)), None)
    return end, _box(found, box, ItemSpan(start, end, ()), scale, log, repaired=key != _BOX_KEYS[0])


def _broken_object(text: str, start: int, scale: tuple[int, int], log: ParseLog) -> tuple[int, RawBox | None]:
    """What can be saved of an object that is no JSON: up to the next one, at most."""
    following = text.find("{", start + 1, start + _MAX_OBJECT)
    end = following if following >= 0 else min(len(text), start + _MAX_OBJECT)
    closed = text.find("}", start, end)
    box = _BOX.search(text, start, end)
    label = _LABEL.search(text, start, end)
    if box is None or label is None:
        log.lose("truncated" if end == len(text) and closed < 0 else "broken_item", start)
        return end, None
    last = closed + 1 if closed >= 0 else max(box.end(), label.end())
    return max(last, start + 1), _box(label[1], box, ItemSpan(start, last, ()), scale, log, repaired=True)


def _box(
    label: str,
    match: re.Match[str] | None,
    place: ItemSpan,
    scale: tuple[int, int],
    log: ParseLog,
    *,
    repaired: bool,
) -> RawBox | None:
    numbers: list[Any] = (
        [] if match is None else list(_NUMBER.finditer(match[0], match.start(1) - match.start()))
    )
    if match is None or len(numbers) != 4:
        log.lose("wrong_number_of_values", place.start)
        return None
    name = normalise_label(label)
    if not name:
        log.lose("no_label", place.start)
        return None
    values = [float(number[0]) for number in numbers]
    decimal = any(not number[0].lstrip("+-").isdigit() for number in numbers)
    shares = decimal and all(-1 <= value <= 1 for value in values)
    x0, y0, x1, y1 = _canonical(values, (1, 1) if shares else scale)
    outside = not shares and any(not 0 <= value <= limit for value, limit in zip(values, scale * 2))
    box = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
    spans = tuple((match.start() + number.start(), match.start() + number.end()) for number in numbers)
    repaired = repaired or decimal or outside or box != (x0, y0, x1, y1)
    return RawBox(name, box, ItemSpan(place.start, place.end, spans), repaired)
