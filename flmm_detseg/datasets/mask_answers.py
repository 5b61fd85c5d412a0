"""Samples whose text is an answer with mask tokens: what readers of such data share."""

from __future__ import annotations

from typing import Any

from flmm_detseg.errors import ConfigError
from flmm_detseg.language.segment_names import MASK_TOKEN, mask_token_spans
from flmm_detseg.structures import Phrase
from flmm_detseg.utils.values import CONTROL_WORDS, check_text, check_words

# Sample.task of these samples, and the entry of Sample.meta that holds regions which count neither way.
REASONING = "reasoning"
IGNORE_KEY = "ignore"
# Entry of Sample.meta that says what makes something absent: of answers with mask tokens a word, of phrases a list with
# a word, or None, for each; and the word where nothing is stated.
ABSENT_KEY = "absent"
UNSTATED = "other"
WORDINGS = ("random", "first")


def check_query(value: Any, what: str) -> str:
    """Words of a file that go into a question or an answer: no control word, no mask token, not empty.

    Args:
        value: Anything a file gave.
        what: The field, for the error.

    Returns:
        The words, white space of any kind as single spaces.

    Raises:
        FieldError: See :func:`~flmm_detseg.utils.values.check_words`.
    """
    words = check_words(value, what, (*CONTROL_WORDS, MASK_TOKEN))
    return " ".join(check_text(words, what, empty=False).split())


def check_wordings(wordings: str) -> str:
    """An argument that is one of :data:`WORDINGS`; raises ConfigError where it is none."""
    if wordings not in WORDINGS:
        raise ConfigError(f"`wordings` is {wordings!r}; allowed: {', '.join(WORDINGS)}")
    return wordings


def mask_phrases(text: str) -> tuple[Phrase, ...]:
    """A phrase for each mask token of an answer: its characters."""
    return tuple(Phrase(spans=(span,)) for span in mask_token_spans(text))
