"""How masks are asked for and answered in training data: some wordings of each, one of which is drawn.

Words are lower case and marks stand apart, as in TinyWorld's texts: the tiny models' tokenizer knows them so.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flmm_detseg.language.segment_names import MASK_TOKEN

NOTHING_THERE = "there is no such object ."
# {}: the name of a class, or a phrase.
PHRASE_QUESTIONS = (
    "where is {} in this image ?",
    "please give the mask of {} .",
    "which pixels of the image show {} ?",
    "please outline {} in this image .",
)
# {}: a question or an order of its own.
SENTENCE_QUESTIONS = ("{} please answer with a mask .", "{} outline the answer in this image .")
# After a question.
REASON_REQUESTS = ("please say why .", "give the reason , too .", "and what is the reason for it ?")
# {}: the masks. Words that name something ("the answer is [SEG]") would be taken as a mask's name.
ANSWERS = (
    "this is it : {} .",
    "here it is : {} .",
    "yes , here : {} .",
    "there it is : {} .",
    "yes , this is it : {} .",
)
CAPTION_QUESTIONS = (
    "please describe this image with masks .",
    "what is in this image ? outline each object .",
    "please give a description and the mask of everything in it .",
)


def ask_for_mask(query: str, draw: np.random.Generator | None = None, *, sentence: bool = False) -> str:
    """A question about where something is.

    Args:
        query: Words: a name, a phrase, or a question of its own.
        draw: Chooses the wording; None: the first one.
        sentence: The query is a whole sentence.

    Returns:
        The question.
    """
    return _one(SENTENCE_QUESTIONS if sentence else PHRASE_QUESTIONS, draw).format(query)


def ask_for_reason(question: str, draw: np.random.Generator | None = None) -> str:
    """A question that wants the reason as well (arguments as :func:`ask_for_mask`)."""
    return f"{question} {_one(REASON_REQUESTS, draw)}"


def ask_for_caption(draw: np.random.Generator | None = None) -> str:
    """A request for a description whose phrases have masks (arguments as :func:`ask_for_mask`)."""
    return _one(CAPTION_QUESTIONS, draw)


def answer_with_masks(
    num_masks: int, names: Sequence[str] = (), draw: np.random.Generator | None = None
) -> str:
    """An answer with a mask token for each target.

    Args:
        num_masks: K; 0: nothing is there.
        names: What the targets are called, K of them; empty: they have no names.
        draw: Chooses the wording of an answer without names; None: the first one.

    Returns:
        ``"the red ring [SEG] and the star [SEG] ."``, ``"this is it : [SEG] ."``, ``"there is no such object ."``.
    """
    if not num_masks:
        return NOTHING_THERE
    parts = [f"{name} {MASK_TOKEN}" for name in names] or [MASK_TOKEN] * num_masks
    assert len(parts) == num_masks
    listed = " and ".join([" , ".join(parts[:-1]), parts[-1]]) if num_masks > 1 else parts[0]
    return f"{listed} ." if names else _one(ANSWERS, draw).format(listed)


def _one(wordings: Sequence[str], draw: np.random.Generator | None) -> str:
    return wordings[0 if draw is None else int(draw.integers(len(wordings)))]
