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
_QUESTION = ("what", "which", "who", "where", "when", "why", "how")
_FINITE = ("is", "are", "does", "do", "can")
_REQUEST = ("describe", "explain", "tell me", "answer")
_ASK = (*_QUESTION, *_FINITE, *_REQUEST)
# Also nouns: verbs only where an object stands behind them ("box the car", not "the box on the table").
_NOUNS = ("list", "box", "count", "mask", "outline", "highlight")
_NO_OBJECT = (
    "of on in at by with without from to for near above below over under behind beside between inside around left "
    "right as that which who whose than and or then but is are was were has have"
).split()
_POLITE = (
    r"(?:(?:please|kindly|now|first|also|next|finally)[\s,]+"
    r"|(?:can|could|would|will)\s+you\s+(?:please\s+|kindly\s+)?"
    r"|i(?:'d|\s+would)\s+like\s+(?:you\s+)?to\s+|i\s+want\s+(?:you\s+)?to\s+|help\s+me\s+(?:to\s+)?)*"
)


def _words(words: Sequence[str]) -> str:
    return "|".join(words)


_ACTIONS = [verb for verb in (*_DETECT, *_SEGMENT) if verb not in _NOUNS]
_VERB = re.compile(
    rf"(?:^\s*|(?P<joint>[,;:.?!]\s*(?:(?:and|then)\s+)*|\s+(?:and|then)\s+(?:then\s+)?)){_POLITE}"
    rf"(?:(?P<action>{_words(_ACTIONS)}|(?:{_words(_NOUNS)})(?=\s+(?!(?:{_words(_NO_OBJECT)})\b)\w))"
    rf"|(?P<ask>{_words(_ASK)}))\b",
    re.IGNORECASE,
)
# What makes "is", "are", ... behind a comma or "and" a question; "and is red" goes on with the phrase.
_SUBJECT = re.compile(
    r"\s+(?:there|it|this|that|these|those|the|an?|any|all|they|he|she|you|we|i)\b", re.IGNORECASE
)
_SENTENCE = re.compile(r"[?.!;]")
_RELATIVE = rf"(?:which|who|whose|that|{_words(_FINITE)}|has|have|was|were)\b"
_SPLIT = re.compile(rf"(?>\s*,\s*(?:and\s+)?|\s+and\s+)(?!{_RELATIVE})", re.IGNORECASE)
_ARTICLE = re.compile(r"^(?:all(?:\s+of)?(?:\s+the)?|every|each|any|the|a|an|some)(?:\s+|$)", re.IGNORECASE)
_LEAD = re.compile(r"^(?:please|for\s+me)\s+", re.IGNORECASE)
_TRAIL = re.compile(r"(?:[\s,]+(?:please|for\s+me|thanks|thank\s+you))+$", re.IGNORECASE)
_ASKED = re.compile(rf"(?:{_words(_QUESTION)}|whether|if)\b", re.IGNORECASE)
_PLACE = re.compile(r"\s+(?:in|on|of)\s+(?:the|this)\s+(?:image|picture|photo|scene)$", re.IGNORECASE)
_EDGES = " \t\r\n,;:."
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


@dataclass(frozen=True)
class Instruction:
    """What was understood of an instruction.

    Attributes:
        steps: In the order of the words.
        uninterpreted: Words that belong to no step, e.g. ``"in the image"`` of "in the image, detect the cars".
            Verbs, connectives and politeness are not listed.
    """

    steps: tuple[Step, ...]
    uninterpreted: tuple[str, ...] = ()


@dataclass
class _Clause:
    """A verb (or question word) and the characters ``start..end`` that it governs."""

    kind: Kind
    verb: tuple[int, int]
    start: int
    end: int


def parse_instruction(instruction: str) -> Instruction:
    """Splits an instruction into steps, by its verbs; deterministic, so the same words always ask for the same.

    A verb stands at the beginning, behind a mark, or behind "and" / "then"; "please", "can you" and the like may stand
    before it. ``detect`` takes a list ("the cars and the dogs" are two steps); ``segment`` splits at commas and "and"
    too; "detect and segment the cars" are two steps about the cars. Relations stay whole ("the ring above the red star
    and is small"). A question behind a verb ("count how many ...") is a question to the LMM, as is an instruction
    without a verb.

    Raises:
        DataError: Nothing is asked for.
    """
    if not instruction.strip():
        raise DataError(
            "the instruction is empty; say for example 'detect the cars and segment the tree on the left'"
        )
    clauses = _clauses(instruction)
    whole = _trimmed(instruction, 0, len(instruction), " \t\r\n")
    if not clauses:
        return Instruction((Step("answer", instruction[slice(*whole)], whole),))
    steps: list[Step] = []
    rest: list[str] = []
    lead = _trimmed(instruction, 0, clauses[0].verb[0])
    if clauses[0].kind == "answer":
        clauses[0].start = whole[0]
    elif words := _impolite(instruction[slice(*lead)]):
        rest.append(words)
    for number, clause in enumerate(clauses):
        found = _steps(instruction, clause)
        if not found and number + 1 < len(clauses) and clauses[number + 1].kind != "answer":
            # "detect and segment the cars": the next verb's object is this one's too.
            following = clauses[number + 1]
            found = _steps(instruction, _Clause(clause.kind, clause.verb, following.start, following.end))
        steps += found
        if not found:
            rest.append(instruction[slice(*clause.verb)])
    if not steps:
        raise DataError(f"{instruction!r} names nothing to detect or segment")
    return Instruction(tuple(steps), tuple(rest))


def _clauses(text: str) -> list[_Clause]:
    """Verbs with the text up to the next one: nothing between two clauses is left over but joints and politeness."""
    clauses: list[_Clause] = []
    for match in _VERB.finditer(text.rstrip()):
        if match["action"] is not None:
            verb = match.span("action")
            name = match["action"].lower()
            kind: Kind = "detect" if name in _DETECT else "segment"
            start = verb[1]
        elif clauses and not _asks(text, match):
            continue
        else:
            verb, kind = match.span("ask"), "answer"
            start = verb[0]
        if clauses:
            mark = match["joint"].strip()[:1] if match["joint"] else ""
            # A sentence keeps the mark it ends with.
            clauses[-1].end = match.start() + (1 if mark and mark in ".?!" else 0)
        clauses.append(_Clause(kind, verb, start, len(text)))
    return clauses


def _asks(text: str, match: re.Match[str]) -> bool:
    """Whether a question word behind other words begins a question, and no relative clause or second predicate."""
    joint, word = match["joint"].strip().lower(), match["ask"].lower()
    if _SENTENCE.match(joint) or word in _REQUEST:
        return True
    if word in _FINITE:
        return _SUBJECT.match(text, match.end()) is not None
    if (
        joint.startswith(",")
        and not joint.endswith(("and", "then"))
        and word in ("which", "who", "where", "when")
    ):
        end = _SENTENCE.search(text, match.end())
        return end is not None and end[0] == "?"
    return True


def _steps(text: str, clause: _Clause) -> list[Step]:
    marks = "" if clause.kind == "answer" else "?!"
    start, end = _trimmed(text, clause.start, clause.end, _EDGES + marks)
    if clause.kind == "answer":
        return [Step("answer", text[start:end], (start, end))] if start < end else []
    if polite := _LEAD.match(text[start:end]):
        start += polite.end()
    if polite := _TRAIL.search(text[start:end]):
        end = start + polite.start()
    if start < end and _ASKED.match(text[start:end]):
        first = clause.verb[0]
        return [Step("answer", text[first:end], (first, end))]
    pieces, position = [], start
    for cut in _SPLIT.finditer(text, start, end):
        pieces.append((position, cut.start()))
        position = cut.end()
    pieces.append((position, end))
    steps = []
    for first, last in pieces:
        first, last = _trimmed(text, first, last)
        # "the left ring" stays whole for the LMM; only class names go without their article.
        if clause.kind == "detect" and (article := _ARTICLE.match(text[first:last])):
            first += article.end()
        if first < last:
            steps.append(Step(clause.kind, text[first:last], (first, last)))
    return steps


def _impolite(text: str) -> str:
    return re.sub(rf"(?:^|[\s,]+){_POLITE}$", "", f"{text} ", flags=re.IGNORECASE).strip(_EDGES)


def _trimmed(text: str, start: int, end: int, edges: str = _EDGES) -> tuple[int, int]:
    while start < end and text[start] in edges:
        start += 1
    while end > start and text[end - 1] in edges:
        end -= 1
    return start, end


def match_class(words: str, class_names: Sequence[str]) -> list[int] | None:
    """Labels that a class word asks for: the class of that name (singular or plural); None where there is none.

    ``"everything"`` and the like ask for all of them; "in the image" says nothing.
    """
    name = _PLACE.sub("", " ".join(words.lower().split()))
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
