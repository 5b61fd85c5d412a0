"""What a compound instruction asks for: "detect the cars and segment the tree on the left"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from flmm_detseg.errors import DataError

Kind = Literal["detect", "segment", "answer"]

_DETECT = ("detect", "find", "locate", "list", "box", "count")
_SEGMENT = ("segment", "mask", "outline", "highlight", "cut out")
_ASK = (
    "what",
    "which",
    "who",
    "where",
    "when",
    "why",
    "how",
    "is",
    "are",
    "does",
    "do",
    "can",
    "describe",
    "answer",
)
_VERB = re.compile(
    r"(?:^|(?P<joint>[,;.?!]\s*(?:and\s+|then\s+)*|\s+(?:and|then)\s+(?:then\s+)?))"
    rf"(?:please\s+)?(?P<verb>{'|'.join((*_DETECT, *_SEGMENT, *_ASK))})\b",
    re.IGNORECASE,
)
_ARTICLE = re.compile(r"^(?:all(?:\s+of)?(?:\s+the)?|every|each|any|the|a|an|some)(?:\s+|$)", re.IGNORECASE)
_SPLIT = re.compile(r"\s*,\s*(?:and\s+)?|\s+and\s+", re.IGNORECASE)
EVERYTHING = frozenset({"everything", "objects", "all objects", "all", "things", "object", "anything"})


@dataclass(frozen=True)
class Step:
    """One thing asked for.

    Attributes:
        kind: ``"detect"`` (every object of the classes), ``"segment"`` (the region a phrase speaks of), ``"answer"``.
        text: Class names or phrase without article, or the question, as written.
        span: Character span of ``text`` in the instruction.
    """

    kind: Kind
    text: str
    span: tuple[int, int]


def parse_instruction(instruction: str) -> list[Step]:
    """Splits an instruction into steps, by its verbs; deterministic, so the same words always ask for the same.

    ``detect`` takes a list ("the cars and the dogs" are two steps); ``segment`` splits at commas and "and" too.
    Relations stay whole ("the ring above the red star"). What no verb introduces is a question to the LMM.

    Raises:
        DataError: Nothing is asked for.
    """
    text = instruction.strip()
    if not text:
        raise DataError(
            "the instruction is empty; say for example 'detect the cars and segment the tree on the left'"
        )
    offset = instruction.index(text[0])
    matches = list(_VERB.finditer(text))
    if not matches or matches[0].start() > 0:
        return [Step("answer", text, (offset, offset + len(text)))]
    steps: list[Step] = []
    for match, following in zip(matches, [*matches[1:], None]):
        end = following.start() if following is not None else len(text)
        verb = match["verb"].lower()
        start = match.start("verb") if verb in _ASK else match.end()
        kind: Kind = "detect" if verb in _DETECT else "segment" if verb in _SEGMENT else "answer"
        if kind == "answer" and not steps_apart(text, match, matches):
            continue
        steps += _steps(kind, text, start, end, offset)
    if not steps:
        raise DataError(f"{instruction!r} names nothing to detect or segment")
    return steps


def steps_apart(text: str, match: re.Match[str], matches: Sequence[re.Match[str]]) -> bool:
    """Whether a question word begins a question (not a relative clause): it leads, or stands behind a mark."""
    joint = match["joint"]
    return match is matches[0] or (joint is not None and (joint.strip()[:1] in ",;.?!" or "and" in joint))


def _steps(kind: Kind, text: str, start: int, end: int, offset: int) -> list[Step]:
    if kind == "answer":
        pieces = [(start, end)]
    else:
        pieces, position = [], start
        for cut in [*_SPLIT.finditer(text, start, end), None]:
            pieces.append((position, cut.start() if cut is not None else end))
            position = cut.end() if cut is not None else end
    steps = []
    for first, last in pieces:
        while first < last and text[first] in " \t\n,;.":
            first += 1
        while last > first and text[last - 1] in " \t\n,;.":
            last -= 1
        if kind != "answer":
            article = _ARTICLE.match(text[first:last])
            # "the left ring" stays whole for the LMM; only class names go without their article.
            if article and kind == "detect":
                first += article.end()
        if first < last:
            steps.append(Step(kind, text[first:last], (offset + first, offset + last)))
    return steps


def match_class(words: str, class_names: Sequence[str]) -> list[int] | None:
    """Labels that a class word asks for: the class of that name (singular or plural); None where there is none.

    ``"everything"`` and the like ask for all of them.
    """
    name = " ".join(words.lower().split())
    if name in EVERYTHING:
        return list(range(len(class_names)))
    forms = {name, *_singulars(name)}
    found = [index for index, known in enumerate(class_names) if known.lower() in forms]
    return found or None


def _singulars(word: str) -> set[str]:
    forms = set()
    if word.endswith("ies"):
        forms.add(word[:-3] + "y")
    if word.endswith("es"):
        forms.add(word[:-2])
    if word.endswith("ves"):
        forms |= {word[:-3] + "f", word[:-3] + "fe"}
    if word.endswith("s") and not word.endswith("ss"):
        forms.add(word[:-1])
    irregular = {"people": "person", "men": "man", "women": "woman", "mice": "mouse", "sheep": "sheep"}
    head, _, last = word.rpartition(" ")
    if last in irregular:
        forms.add(f"{head} {irregular[last]}".strip())
    return forms
