"""From which probability of presence on something counts as found, as users say it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from flmm_detseg.errors import ConfigError
from flmm_detseg.utils.values import is_number

if TYPE_CHECKING:
    from flmm_detseg.models.grounding_lmm import GroundingLMM

# A probability, the threshold that was fitted with the presence head, or none.
MinPresence: TypeAlias = float | Literal["stored"] | None


def presence_limit(model: GroundingLMM, wanted: MinPresence) -> float | None:
    """The threshold that is meant.

    Args:
        model: Whose phrase head may have a presence head.
        wanted: ``"stored"``: the model's own.

    Returns:
        Within [0, 1]; None where none is wanted.

    Raises:
        ConfigError: The model has no presence head, or the number is no probability.
    """
    if wanted is None:
        return None
    from flmm_detseg.heads import (
        head_of,
    )  # looks for mmcv, which the API can do without until a model is there

    if wanted != "stored" and not (is_number(wanted) and 0 <= wanted <= 1):
        raise ConfigError(f"`min_presence` is {wanted!r}; give a probability within [0, 1], or 'stored'")
    head = head_of(model.heads, "phrase")
    stored = None if head is None else head.presence_threshold
    if stored is None:
        raise ConfigError(
            f"`min_presence` is {wanted!r}, but the model has no presence head, so nothing says what is there; leave "
            "it out, or use a model that has one (docs/presence.md)"
        )
    return stored if wanted == "stored" else float(wanted)
