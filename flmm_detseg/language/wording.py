"""Conventions of serialiser and parser: section tags, the words that may stand in a label, what counts as repeated."""

from __future__ import annotations

import re

from flmm_detseg.language.items import Box
from flmm_detseg.language.task_tokens import remove_special_tokens

SECTION_TAGS = {"answer": "Answer:", "detections": "Detections:", "segmentations": "Segmentations:"}
EMPTY_SECTION = "none"
MAX_LABEL_CHARS = 200
MAX_ITEMS = 1000  # per section, written and read: bounds the work on a degenerate answer
REPEATED_IOU = 0.95

SECTION_TAG = re.compile(
    r"\b(?:(?P<answer>answers?)|(?P<detections>detections?)|(?P<segmentations>segmentations?))"
    r"[*_]{0,2}[ \t]{0,4}[:\uff1a](?:\*\*)?",  # also the full-width colon and markdown: **Answer**: and **Answer:**
    re.IGNORECASE | re.ASCII,
)

_STRUCTURE = re.compile(r"[\[\](){}<>;:\uff1b\uff1a]")
_EDGES = " ,.*\uff0c\"'`\u2022-"
_FORBIDDEN_IN_ANSWER = re.compile(
    r"\b((?:detection|segmentation)s?[*_]{0,2}[ \t]{0,4})[:\uff1a]", re.I | re.A
)


def normalise_label(label: str) -> str:
    """A label as it stands in text: idempotent, and lossy where it has to be.

    Brackets, ``<``, ``>``, ``;``, ``:`` and line breaks become spaces, runs of white space one space; commas, dots,
    quotes, bullets and dashes are cut off both ends; at most ``MAX_LABEL_CHARS`` characters stay. Case is kept.

    Args:
        label: Any text.

    Returns:
        The label; empty when nothing is left.
    """
    words = " ".join(_STRUCTURE.sub(" ", label).split()).strip(_EDGES)
    return words[:MAX_LABEL_CHARS].strip(_EDGES)


def normalise_answer(answer: str) -> str:
    """The words of an answer as they stand in text: idempotent.

    Lines stay; white space at the ends, carriage returns and special tokens go, and ``Detections:`` or
    ``Segmentations:`` inside the words lose their colon (``Detections -``), since they would open a section.
    """
    words = remove_special_tokens(answer.replace("\r\n", "\n")).strip()
    return _FORBIDDEN_IN_ANSWER.sub(r"\1 -", words)


def is_repeated(box: Box, kept: list[Box]) -> bool:
    """Whether a box repeats one of the kept boxes (of the same label): equal, or IoU above ``REPEATED_IOU``."""
    x1, y1, x2, y2 = box
    area = (x2 - x1) * (y2 - y1)
    for other_x1, other_y1, other_x2, other_y2 in kept:
        width = min(x2, other_x2) - max(x1, other_x1)
        height = min(y2, other_y2) - max(y1, other_y1)
        if width <= 0 or height <= 0:
            if box == (other_x1, other_y1, other_x2, other_y2):
                return True
            continue
        overlap = width * height
        union = area + (other_x2 - other_x1) * (other_y2 - other_y1) - overlap
        if overlap > REPEATED_IOU * union:
            return True
    return False
