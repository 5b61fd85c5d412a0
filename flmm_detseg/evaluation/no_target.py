"""Named conventions for queries that nothing in the image fits: what counts as empty, and what it is worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from flmm_detseg.errors import ConfigError
from flmm_detseg.utils.choices import NO_TARGET_CONVENTIONS


@dataclass(frozen=True)
class NoTargetRule:
    """What a convention calls empty.

    All agree on the rest: nothing predicted where nothing is counts as IoU 1 and adds no pixel to cIoU; anything
    predicted there counts as IoU 0, and its pixels enter cIoU's union.

    Attributes:
        flagged: A query has no target where the data set says so (its answer has no ``[SEG]``); False: where its target
            has no pixel. They differ for targets that are annotated but have no pixel left.
        by_token: An answer says "nothing" where it has no ``[SEG]``; False: where its masks have too few pixels.
        min_pixels: Masks of fewer pixels in all are none.
    """

    flagged: bool = False
    by_token: bool = False
    min_pixels: int = 1


_RULES = {
    "lisa": NoTargetRule(),
    "gsva": NoTargetRule(by_token=True),
    "rela": NoTargetRule(flagged=True, min_pixels=50),
    "vision_reasoner": NoTargetRule(flagged=True),
}


class Judgement(NamedTuple):
    """What an answer is worth.

    Attributes:
        iou: What it adds to gIoU.
        intersection: Pixels that it adds above the line of cIoU.
        union: Pixels that it adds below.
        no_target: Nothing fits the query.
        says_none: The answer says so.
    """

    iou: float
    intersection: int
    union: int
    no_target: bool
    says_none: bool


def no_target_rule(convention: str) -> NoTargetRule:
    """The rule of a convention.

    Args:
        convention: One of :data:`~flmm_detseg.utils.choices.NO_TARGET_CONVENTIONS`.

    Returns:
        What it calls empty.

    Raises:
        ConfigError: Unknown name.

    Source: LISA (arXiv 2308.00692) and GSVA (arXiv 2312.10103) as their code evaluates, GRES (arXiv 2306.00968) section
    4.1 for "rela", whose answers here have no classifier for "no target" but the 50 pixels; VisionReasoner (arXiv
    2505.12081).
    """
    if convention not in _RULES:
        raise ConfigError(f"`convention` is {convention!r}; allowed: {', '.join(NO_TARGET_CONVENTIONS)}")
    return _RULES[convention]


def judge(record: Mapping[str, Any], rule: NoTargetRule) -> Judgement:
    """Judges an answer by a rule.

    Args:
        record: Of :func:`~flmm_detseg.evaluation.mask_answer_records.mask_answer_record`.
        rule: Of :func:`no_target_rule`.

    Returns:
        What it adds to the figures.
    """
    area, intersection, target_area = record["area"], record["intersection"], record["target_area"]
    no_target = record["num_targets"] == 0 if rule.flagged else target_area == 0
    says_none = record["num_masks"] == 0 if rule.by_token else area < rule.min_pixels
    if says_none:
        area = intersection = 0
    union = area + target_area - intersection
    if no_target:
        return Judgement(float(says_none), intersection, union, no_target, says_none)
    return Judgement(intersection / union if union else 0.0, intersection, union, no_target, says_none)
