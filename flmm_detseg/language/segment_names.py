"""The token that stands for a mask in an answer, and the words that say what the mask is of."""

from __future__ import annotations

import re
from collections.abc import Sequence

from flmm_detseg.language.noun_phrases import noun_phrases

Span = tuple[int, int]

# Added to the LMM's tokens; each in an answer is one mask. The joint template's `<SEG>` is plain text.
MASK_TOKEN = "[SEG]"

_SENTENCE_END = re.compile(r"[.!?\n\u3002\uff01\uff1f]")
# Between two noun phrases of one name: "the ring left of the star", "a man with a hat".
_LINK = re.compile(
    r"\s+(?:(?:next|close|nearest|to|left|right|top|bottom|side|front|in|of|on|at|the|with|without|above|below|under|"
    r"over|near|between|behind|beside|inside|from|by)\s+)+",
    re.IGNORECASE,
)


def mask_token_spans(text: str) -> list[Span]:
    """Where the token stands in a text.

    Args:
        text: An answer.

    Returns:
        Half-open character ranges, in order.
    """
    return [match.span() for match in re.finditer(re.escape(MASK_TOKEN), text)]


def segment_names(text: str, spans: Sequence[Span]) -> list[str]:
    """The words that each mask token of an answer belongs to, see :func:`name_spans`.

    Args:
        text: An answer.
        spans: Character ranges of its mask tokens, in order.

    Returns:
        A name for each; empty where no words stand before it that name anything ("it is [SEG]").
    """
    return [text[start:end] for start, end in name_spans(text, spans)]


def name_spans(text: str, spans: Sequence[Span]) -> list[Span]:
    """Where the names of the masks of an answer stand.

    A name is the last noun phrase before the token, with what prepositions tie to it ("the ring left of the star"),
    since the token before or the beginning of the sentence.

    Args:
        text: An answer.
        spans: Half-open character ranges of its mask tokens, in order.

    Returns:
        A range for each; an empty one at the token's start where nothing is named.
    """
    found, begin = [], 0
    for start, end in spans:
        ends = [match.end() for match in _SENTENCE_END.finditer(text, begin, start)]
        found.append(_name(text, ends[-1] if ends else begin, start))
        begin = end
    return found


def _name(text: str, begin: int, end: int) -> Span:
    phrases = [
        (begin + first, begin + last)
        for phrase in noun_phrases(text[begin:end])
        for first, last in phrase.spans
    ]
    if not phrases:
        return end, end
    first, last = phrases.pop()
    while phrases and _LINK.fullmatch(text, phrases[-1][1], first):
        first = phrases.pop()[0]
    return first, last
