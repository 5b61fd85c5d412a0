"""What a compound instruction asks for: "detect the cars and segment the tree on the left"."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from flmm_detseg.errors import DataError
from flmm_detseg.inference.chinese_instructions import has_chinese, parse_chinese
from flmm_detseg.inference.steps import Instruction, Kind, Step
from flmm_detseg.utils.values import check_text, shown

_DETECT = ("detect", "find", "locate", "list", "box", "count")
_SEGMENT = ("segment", "mask", "outline", "highlight", "cut out")
_QUESTION = ("what", "which", "who", "where", "when", "why", "how")
_FINITE = ("is", "are", "does", "do", "can")
_REQUEST = ("describe", "explain", "tell me", "answer")
_ASK = (*_QUESTION, *_FINITE, *_REQUEST)
# Also nouns: verbs only where an object follows them ("box the car", not "the box on the table").
_NOUNS = ("list", "box", "count", "mask", "outline", "highlight")
_NO_OBJECT = (
    "of on in at by with without from to for near above below over under behind beside between inside around left "
    "right as that which who whose than and or then but is are was were has have"
).split()
# Patterns read a text with single blanks (see `_Squeezed`), and none of them is repeated over words: a long text costs
# as many steps as it has characters.
_POLITE = re.compile(
    r"(?:please|kindly|now|first|also|next|finally|only|just)[\s,]+|(?:can|could|would|will)\s+you\s+"
    r"|i(?:'d|\s+would)\s+like\s+(?:you\s+)?to\s+|i\s+want\s+(?:you\s+)?to\s+|help\s+me\s+(?:to\s+)?",
    re.IGNORECASE,
)
_THANKS = ("please", "for me", "thanks", "thank you", "only")


def _words(words: Sequence[str]) -> str:
    return "|".join(words)


_ACTIONS = [verb for verb in (*_DETECT, *_SEGMENT) if verb not in _NOUNS]
_BEGINNING = re.compile(r"\s*")
_JOINT = re.compile(r"[,;:.?!]\s*(?:(?:and|then|but)\s+)*|\s+(?:and|then|but)\s+(?:then\s+)?", re.IGNORECASE)
_VERB = re.compile(
    rf"(?:(?P<action>{_words(_ACTIONS)}|(?:{_words(_NOUNS)})(?=\s+(?!(?:{_words(_NO_OBJECT)})\b)\w))"
    rf"|(?P<ask>{_words(_ASK)}))\b",
    re.IGNORECASE,
)
# What makes "is", "are", ... after a comma or "and" a question; "and is red" goes on with the phrase.
_SUBJECT = re.compile(
    r"\s+(?:there|it|this|that|these|those|the|an?|any|all|they|he|she|you|we|i)\b", re.IGNORECASE
)
_SENTENCE = re.compile(r"[?.!;]")
_RELATIVE = rf"(?:which|who|whose|that|{_words(_FINITE)}|has|have|was|were)\b"
_SPLIT = re.compile(rf"(?>\s*,\s*(?:and\s+)?|\s+and\s+)(?!{_RELATIVE})", re.IGNORECASE)
_ARTICLE = re.compile(r"^(?:all(?:\s+of)?(?:\s+the)?|every|each|any|the|a|an|some)(?:\s+|$)", re.IGNORECASE)
_LEAD = re.compile(r"^(?:(?:please|for\s+me|only|just)\s+){1,4}", re.IGNORECASE)
_ASKED = re.compile(rf"(?:{_words(_QUESTION)}|whether|if)\b", re.IGNORECASE)
_EDGES = " ,;:."
_BLANKS = re.compile(r"\s+")
_BORDER = re.compile(r"^|[\s,]+")
_LONGEST_THANKS = max(map(len, _THANKS))


@dataclass
class _Clause:
    """A verb (or question word) and the characters ``start..end`` that it governs."""

    kind: Kind
    verb: tuple[int, int]
    start: int
    end: int


class _Squeezed:
    """A text in which every run of white space is one blank, and where its characters stand in the original."""

    def __init__(self, original: str) -> None:
        self.original = original
        runs = list(_BLANKS.finditer(original))
        self.text = _BLANKS.sub(" ", original)
        # Where a run is longer than its blank, and by how much all up to there is shorter.
        self._ends: list[int] = []
        self._removed = [0]
        for run in runs:
            if run.end() - run.start() > 1:
                self._ends.append(run.start() + 1 - self._removed[-1])
                self._removed.append(self._removed[-1] + run.end() - run.start() - 1)

    def step(self, kind: Kind, start: int, end: int) -> Step:
        """The step of a range of :attr:`text`, with the words and the place they have in the original."""
        first = start + self._removed[bisect_right(self._ends, start)]
        last = end - 1 + self._removed[bisect_right(self._ends, end - 1)] + 1
        return Step(kind, self.original[first:last], (first, last))


def parse_instruction(instruction: str) -> Instruction:
    """Splits an instruction into steps, by its verbs; deterministic, so the same words always ask for the same.

    A verb stands at the beginning, after a mark, or after "and" / "then"; "please", "can you" and the like may stand
    before it. ``detect`` takes a list ("the cars and the dogs" are two steps); ``segment`` splits at commas and "and"
    too; "detect and segment the cars" are two steps about the cars. Relations stay whole ("the ring above the red star
    and is small"). A question after a verb ("count how many ...") is a question to the LMM, as is an instruction
    without a verb. "Only" asks for nothing more. Time grows with the length of the text, whatever stands in it.
    Instructions in Chinese: :func:`~flmm_detseg.inference.chinese_instructions.parse_chinese`.

    Args:
        instruction: One or more sentences.

    Returns:
        The steps in the order of the words, at least one, and the words that belong to none.

    Raises:
        DataError: Nothing is asked for, or it is no text that can be read (half a character in it).
    """
    if not check_text(instruction, "instruction").strip():
        raise DataError(
            "the instruction is empty; say for example 'detect the cars and segment the tree on the left'"
        )
    if has_chinese(instruction) and (chinese := parse_chinese(instruction)) is not None:
        if not chinese.steps:
            raise DataError(f"{shown(instruction)} names nothing to detect or segment")
        return chinese
    squeezed = _Squeezed(instruction)
    text = squeezed.text
    clauses = _clauses(text)
    whole = _trimmed(text, 0, len(text), " ")
    if not clauses:
        return Instruction((squeezed.step("answer", *whole),))
    steps: list[Step] = []
    rest: list[str] = []
    lead = _trimmed(text, 0, clauses[0].verb[0])
    if clauses[0].kind == "answer":
        clauses[0].start = whole[0]
    elif words := _impolite(text[slice(*lead)]):
        rest.append(words)
    for number, clause in enumerate(clauses):
        found = _steps(squeezed, clause)
        if not found and number + 1 < len(clauses) and clauses[number + 1].kind != "answer":
            # "detect and segment the cars": the next verb's object is this one's too.
            following = clauses[number + 1]
            found = _steps(squeezed, _Clause(clause.kind, clause.verb, following.start, following.end))
        steps += found
        if not found:
            rest.append(text[slice(*clause.verb)])
    if not steps:
        raise DataError(f"{shown(instruction)} names nothing to detect or segment")
    return Instruction(tuple(steps), tuple(rest))


def _clauses(text: str) -> list[_Clause]:
    """Verbs with the text up to the next one: between two clauses only joints and polite words remain."""
    text = text.rstrip()
    politeness = _Politeness(text)
    marks = [match.start() for match in _SENTENCE.finditer(text)]
    clauses: list[_Clause] = []
    joint = _BEGINNING.match(text)
    while joint is not None:
        match = politeness.verb(joint.end())
        if match is None:
            # Another joint may begin within this one, as in "and and detect".
            joint = _JOINT.search(text, joint.start() + (joint.re is _JOINT))
            continue
        if match["action"] is not None:
            verb = match.span("action")
            name = match["action"].lower()
            kind: Kind = "detect" if name in _DETECT else "segment"
            start = verb[1]
        elif clauses and not _asks(text, joint[0], match, marks):
            joint = _JOINT.search(text, match.end())
            continue
        else:
            verb, kind = match.span("ask"), "answer"
            start = verb[0]
        if clauses:
            mark = joint[0].strip()[:1]
            # A sentence keeps the mark it ends with.
            clauses[-1].end = joint.start() + (1 if mark and mark in ".?!" else 0)
        clauses.append(_Clause(kind, verb, start, len(text)))
        joint = _JOINT.search(text, match.end())
    return clauses


class _Politeness:
    """Runs of polite words, each read once, at however many places reading begins."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._verbs: dict[int, re.Match[str] | None] = {}
        self._ends: dict[int, int] = {}

    def verb(self, start: int) -> re.Match[str] | None:
        """The verb after the polite words at ``start``; the last possible one: "can you see" asks, too."""
        places = self._run(start, self._verbs)
        found = self._verbs.get(places.pop()) if places[-1] in self._verbs else None
        for place in reversed(places):
            found = self._verbs[place] = found or _VERB.match(self._text, place)
        return found

    def end(self, start: int) -> int:
        """Where the run of polite words at ``start`` ends."""
        places = self._run(start, self._ends)
        last = self._ends.get(places[-1], places[-1])
        self._ends.update(dict.fromkeys(places, last))
        return last

    def _run(self, start: int, known: Collection[int]) -> list[int]:
        """Where the polite words at ``start`` begin, and where they end, or a place that is known."""
        places = [start]
        while places[-1] not in known and (polite := _POLITE.match(self._text, places[-1])) is not None:
            places.append(polite.end())
        return places


def _asks(text: str, joint: str, match: re.Match[str], marks: Sequence[int]) -> bool:
    """Whether a question word after other words begins a question, not a relative clause or second predicate.

    Args:
        text: The text.
        joint: What stands before the word.
        match: The word.
        marks: Where sentences end.
    """
    joint, word = joint.strip().lower(), match["ask"].lower()
    if _SENTENCE.match(joint) or word in _REQUEST:
        return True
    if word in _FINITE:
        return _SUBJECT.match(text, match.end()) is not None
    if (
        joint.startswith(",")
        and not joint.endswith(("and", "then"))
        and word in ("which", "who", "where", "when")
    ):
        end = bisect_left(marks, match.end())
        return end < len(marks) and text[marks[end]] == "?"
    return True


def _steps(squeezed: _Squeezed, clause: _Clause) -> list[Step]:
    text = squeezed.text
    marks = "" if clause.kind == "answer" else "?!"
    start, end = _trimmed(text, clause.start, clause.end, _EDGES + marks)
    if clause.kind == "answer":
        return [squeezed.step("answer", start, end)] if start < end else []
    if polite := _LEAD.match(text[start:end]):
        start += polite.end()
    end = _without_thanks(text, start, end)
    if start < end and _ASKED.match(text[start:end]):
        return [squeezed.step("answer", clause.verb[0], end)]
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
            steps.append(squeezed.step(clause.kind, first, last))
    return steps


def _without_thanks(text: str, start: int, end: int) -> int:
    """Where ``text[start:end]`` ends without "please", "for me" and the like."""
    while True:
        tail = text[max(start, end - _LONGEST_THANKS) : end].lower()
        word = next((word for word in _THANKS if tail.endswith(word)), None)
        if word is None:
            return end
        before = end - len(word)
        kept = before
        while kept > start and text[kept - 1] in " ,":
            kept -= 1
        if kept == before:
            return end
        end = kept


def _impolite(text: str) -> str:
    """A text without the polite words at its end."""
    text = f"{text} "
    politeness = _Politeness(text)
    for border in _BORDER.finditer(text):
        if politeness.end(border.end()) == len(text):
            return text[: border.start()].strip(_EDGES)
    return text.strip(_EDGES)


def _trimmed(text: str, start: int, end: int, edges: str = _EDGES) -> tuple[int, int]:
    while start < end and text[start] in edges:
        start += 1
    while end > start and text[end - 1] in edges:
        end -= 1
    return start, end
