"""A caption whose phrases are followed by their boxes, four words each: what the tiny LLaVA was pretrained to say.

``a red ring 030 120 400 500 is at the left .``
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import replace

from flmm_detseg.errors import DataError
from flmm_detseg.language.coordinates import MAX_COORDINATE
from flmm_detseg.language.items import Box, JointAnswer
from flmm_detseg.language.parse import ParsedAnswer, ParseLog, collect_boxes
from flmm_detseg.language.scanner import ItemSpan, RawBox
from flmm_detseg.language.serialise import SerialisedAnswer, SerialiseOptions, canonical_boxes
from flmm_detseg.language.task_tokens import remove_special_tokens
from flmm_detseg.language.text_format import DEFAULT_OPTIONS, TextFormat
from flmm_detseg.language.wording import normalise_label

# Words count thousandths of the image, in tens up to 990.
_GRID, _STEP, _LAST = 1000, 10, 990
# At least two: a single one is a number of something else. A run that is not of four is a lost box.
_RUN = re.compile(r"(?<!\S)[0-9]{3}(?:\s{1,4}[0-9]{3})+(?!\S)", re.ASCII)
_WORD = re.compile(r"[0-9]{3}", re.ASCII)
_NUMBERS_AT_END = re.compile(r"(?:(?<!\S)[0-9]{3}\s*)+\Z", re.ASCII)
# A phrase begins after one of these.
_BORDER = re.compile(r"[.,;:!?]|(?<!\S)(?:a|an|the|and|of|is|are|there)(?!\S)", re.IGNORECASE)
_MAX_PHRASE = 100


class BoxedCaption(TextFormat):
    """See the module. It has no answer of its own and no masks; a caption without a box says that nothing is there."""

    name = "boxed_caption"
    sections = ("detections",)
    objects_question = "Please give me a description of the image with boxes."

    def ask(self, question: str, sections: Iterable[str]) -> str:
        """See the base class: the question alone."""
        self.check_sections(sections)
        return remove_special_tokens(question).strip()

    def write(
        self, answer: JointAnswer, image_size: tuple[int, int], options: SerialiseOptions = DEFAULT_OPTIONS
    ) -> SerialisedAnswer:
        """See the base class: one sentence a box, ``a ring 030 120 400 500 .``, the same for every image size."""
        given = {"answer": answer.answer, "segmentations": answer.segmentations}
        self.check_sections(name for name, content in given.items() if content is not None)
        items = [
            replace(item, label=_name(item.label), box=_canonical(_words(item.box)))
            for item in answer.detections or ()
        ]
        boxes, order = canonical_boxes(items, options)
        text = " ".join(
            f"a {item.label} {' '.join(f'{word:03d}' for word in _words(item.box))} ." for item in boxes
        )
        return SerialisedAnswer(
            text, JointAnswer(detections=boxes), {"detections": (0, len(text))} if text else {}, order
        )

    def parse(self, text: str, image_size: tuple[int, int]) -> ParsedAnswer:
        """See the base class; the name of a box is what stands before it, since the last article or mark."""
        log = ParseLog()
        text = log.cut(text)
        raw, last = [], 0
        for run in _RUN.finditer(text):
            begin, last_run, last = max(last, run.start() - _MAX_PHRASE), last, run.end()
            words = list(_WORD.finditer(text, run.start(), run.end()))
            if len(words) != 4:
                log.lose("wrong_number_of_values", run.start())
                continue
            borders = [match.end() for match in _BORDER.finditer(text, begin, run.start())]
            begin = borders[-1] if borders else max(begin, last_run)
            label = normalise_label(text[begin : run.start()])
            if not label:
                log.lose("no_label", run.start())
                continue
            x0, y0, x1, y1 = _canonical([int(word[0]) for word in words])
            box = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
            begin += len(text[begin : run.start()]) - len(text[begin : run.start()].lstrip())
            span = ItemSpan(begin, run.end(), tuple(word.span() for word in words))
            raw.append(RawBox(label, box, span, repaired=box != (x0, y0, x1, y1)))
        boxes, spans = collect_boxes(raw, log)
        return ParsedAnswer(JointAnswer(detections=boxes), spans, (), log.report(len(boxes)))


def _name(label: str) -> str:
    """What is read of a label: the words after its last article or mark, without number words at the end."""
    name = normalise_label(label)[:_MAX_PHRASE]
    while True:
        shorter = normalise_label(_NUMBERS_AT_END.sub("", _BORDER.split(name)[-1]))
        if shorter == name:
            break
        name = shorter
    if not name:
        raise DataError(f"label {label!r} has no words that a caption's phrase could be; name the object")
    return name


def _words(box: Box) -> list[int]:
    return [min(math.floor(value / MAX_COORDINATE * _GRID / _STEP + 0.5) * _STEP, _LAST) for value in box]


def _canonical(words: list[int]) -> Box:
    x0, y0, x1, y1 = (math.floor(word / _GRID * MAX_COORDINATE + 0.5) for word in words)
    return x0, y0, x1, y1
