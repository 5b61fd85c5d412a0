"""From which probability of presence on something counts as found, as users say it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

from flmm_detseg.errors import ConfigError
from flmm_detseg.utils.values import is_number

if TYPE_CHECKING:
    from flmm_detseg.models.grounding_lmm import GroundingLMM

# A probability, the threshold that was fitted with the presence head, or none.
MinPresence: TypeAlias = float | Literal["stored"] | None
# The heads that ground, by the task whose result is theirs, and how messages call them.
_HEADS = {"phrase": "head for phrases", "reasoning": "head for mask tokens"}


def presence_limit(model: GroundingLMM, wanted: MinPresence, task: str = "phrase") -> float | None:
    """The threshold that is meant.

    Args:
        model: Its heads may have presence heads.
        wanted: ``"stored"``: the head's own.
        task: Whose head's: ``"phrase"`` or ``"reasoning"``.

    Returns:
        Within [0, 1]; None where none is wanted.

    Raises:
        ConfigError: The head has no presence head, or one that was never calibrated and whose own is wanted; or the
            number is no probability.
    """
    if wanted is None:
        return None
    from flmm_detseg.heads import (
        head_of,
    )  # looks for mmcv, which the API can do without until a model is there

    if wanted != "stored" and not (is_number(wanted) and 0 <= wanted <= 1):
        raise ConfigError(f"`min_presence` is {wanted!r}; give a probability within [0, 1], or 'stored'")
    head = head_of(model.heads, task)
    stored = None if head is None else head.presence_threshold
    if stored is None:
        raise ConfigError(
            f"`min_presence` is {wanted!r}, but the model's {_HEADS[task]} has no presence head, so nothing says what "
            "is there; leave it out, or use a model that has one (docs/presence.md)"
        )
    if wanted == "stored" and math.isnan(stored):
        raise ConfigError(
            f"`min_presence` is 'stored', but the presence head of the model's {_HEADS[task]} was never calibrated, so "
            "no threshold is stored; train it with a PresenceCalibrationHook (docs/presence.md), or give a probability"
        )
    return stored if wanted == "stored" else float(wanted)


def check_presence(model: GroundingLMM, wanted: MinPresence, tasks: Sequence[str]) -> None:
    """Refuses what :func:`presence_limit` would, for all heads that may ground an answer, before there is one.

    Args:
        model: Its heads may have presence heads.
        wanted: See there.
        tasks: Of :func:`tasks_of_answer`.

    Raises:
        ConfigError: See there.
    """
    for task in tasks:
        presence_limit(model, wanted, task)


def tasks_of_answer(
    model: GroundingLMM, *, plain: bool, reasoning: bool = False, named: bool = False
) -> tuple[str, ...]:
    """Whose heads may ground the answer to a question; which one does, where it is several, the answer decides.

    Args:
        model: The one that is asked.
        plain: The untouched LMM answers, which has no mask tokens (:meth:`Retention.plain
            <flmm_detseg.models.retention.Retention.plain>`).
        reasoning: The question asks for mask tokens.
        named: The caller names words of the answer.

    Returns:
        Of ``"phrase"`` and ``"reasoning"``, at least one (whose head the model may lack).
    """
    from flmm_detseg.heads import head_of  # as above

    if reasoning or named:
        return ("reasoning",) if reasoning else ("phrase",)
    found = tuple(task for task in _HEADS if head_of(model.heads, task) is not None)
    return ("phrase",) if plain and "phrase" in found else found or ("phrase",)
