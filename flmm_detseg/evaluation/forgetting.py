"""What adapting a model cost: base and adapted answers to the same questions, side by side."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flmm_detseg.errors import DataError, RunError
from flmm_detseg.evaluation.bootstrap import bootstrap_interval
from flmm_detseg.evaluation.box_records import ordered_images

# What a model that learned to detect and segment may say unasked.
UNWANTED = {
    "task_token": re.compile(
        r"</?\s*(?:task_)?(?:seg|det|vqa|joint|ref|box|loc|mask|obj|region)[ _]?\d*\s*/?>", re.IGNORECASE
    ),
    "section": re.compile(r"\b(?:detections|segmentations)\s*:", re.IGNORECASE),
    "box": re.compile(
        # Between numbers a comma or a blank; written so that a long run of blanks is read once.
        r"[\[(<]\s*\d+(?:\.\d+)?(?:(?:\s*,\s*|(?=[^\S ]* )\s+)\d+(?:\.\d+)?){3}\s*[\])>]"
        r"|(?<![\d.])\d{3}(?:\s+\d{3}){3}(?![\d.])"
    ),
}


def unwanted_kinds(answer: str, references: Sequence[str]) -> list[str]:
    """Which kinds of :data:`UNWANTED` text an answer holds although no reference answer does.

    Args:
        answer: Of the model.
        references: Right answers; a question for a box may be answered with one.

    Returns:
        Keys of :data:`UNWANTED`; empty for an answer that is in order.
    """
    return [
        kind
        for kind, pattern in UNWANTED.items()
        if pattern.search(answer) and not any(pattern.search(reference) for reference in references)
    ]


def forgetting_record(
    base: Mapping[str, Any], adapted: Mapping[str, Any], kl: float | None = None
) -> dict[str, Any]:
    """Puts two answers to one question side by side.

    Args:
        base: Of :func:`~flmm_detseg.evaluation.vqa.answer_record`, answered by the untouched model.
        adapted: The same question, answered by the adapted model.
        kl: Mean KL divergence (nats) of the adapted model's next-token distributions from the base model's.

    Returns:
        ``record_id``, ``question``, ``references``, ``metric``, ``kind``; ``base`` and ``adapted`` with ``answer``,
        ``score``, ``unwanted``; ``identical`` (the texts); ``kl``.

    Raises:
        DataError: The records belong to different questions.
        RunError: ``kl`` is not finite.
    """
    for key in ("record_id", "question", "references", "metric"):
        if base[key] != adapted[key]:
            raise DataError(f"{base['record_id']}: base and adapted answers differ in `{key}`.")
    if kl is not None and not math.isfinite(kl):
        raise RunError(f"{base['record_id']}: the KL divergence is {kl}. Check the checkpoint and precision.")
    sides = {
        name: {
            "answer": record["answer"],
            "score": record["score"],
            "unwanted": unwanted_kinds(record["answer"], record["references"]),
        }
        for name, record in (("base", base), ("adapted", adapted))
    }
    return {
        **{key: base[key] for key in ("record_id", "question", "references", "metric", "kind")},
        **sides,
        "identical": base["answer"] == adapted["answer"],
        "kl": kl,
    }


def forgetting_figures(
    records: Sequence[Mapping[str, Any]], *, num_resamples: int = 10_000, seed: int = 0
) -> dict[str, float]:
    """Figures of one set of questions.

    Args:
        records: Of :func:`forgetting_record`, in any order.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        ``num_questions``; of the ``num_scored`` of them that have a score: ``base_accuracy`` and
        ``adapted_accuracy`` (fractions), ``forgetting_points``, base minus adapted in points of accuracy (positive:
        worse than before), with its 95 % interval ``forgetting_low`` and ``forgetting_high`` (paired bootstrap over
        questions). Of all of them: ``identical`` (share of equal answers);
        ``unwanted`` and ``base_unwanted`` (share of answers with unasked task tokens, sections or boxes) and
        ``unwanted_KIND``; ``kl_mean`` (nats) where values were given.
    """
    records = ordered_images(records)
    figures: dict[str, float] = {"num_questions": len(records)}
    if not records:
        return figures
    num = len(records)
    scored = [record for record in records if record["base"]["score"] is not None]
    figures["num_scored"] = len(scored)
    if scored:
        base = [record["base"]["score"] for record in scored]
        adapted = [record["adapted"]["score"] for record in scored]
        differences = np.asarray(base) - np.asarray(adapted)
        low, high = bootstrap_interval(differences, num_resamples=num_resamples, seed=seed)
        figures["base_accuracy"] = math.fsum(base) / len(scored)
        figures["adapted_accuracy"] = math.fsum(adapted) / len(scored)
        figures["forgetting_points"] = 100 * math.fsum(differences) / len(scored)
        figures["forgetting_low"], figures["forgetting_high"] = 100 * low, 100 * high
    figures["identical"] = sum(record["identical"] for record in records) / num
    figures["unwanted"] = sum(bool(record["adapted"]["unwanted"]) for record in records) / num
    figures["base_unwanted"] = sum(bool(record["base"]["unwanted"]) for record in records) / num
    for kind in UNWANTED:
        figures[f"unwanted_{kind}"] = sum(kind in record["adapted"]["unwanted"] for record in records) / num
    divergences = [record["kl"] for record in records if record["kl"] is not None]
    if divergences:
        figures["kl_mean"] = math.fsum(divergences) / len(divergences)
    return figures


def summarise(figures: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Forgetting over several sets: the unweighted mean, and the worst set.

    Args:
        figures: Of :func:`forgetting_figures`, by set.

    Returns:
        ``mean_forgetting_points``, ``worst_forgetting_points``; nothing where no set has questions.
    """
    points = [values["forgetting_points"] for values in figures.values() if "forgetting_points" in values]
    if not points:
        return {}
    return {"mean_forgetting_points": math.fsum(points) / len(points), "worst_forgetting_points": max(points)}
