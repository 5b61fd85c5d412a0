"""Is there what a phrase names? Accuracy on phrases that are there and that are not, ranking, and calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flmm_detseg.datasets.mask_answers import ABSENT_KEY, UNSTATED
from flmm_detseg.errors import DataError
from flmm_detseg.evaluation.bootstrap import ratio_intervals
from flmm_detseg.evaluation.records import ordered
from flmm_detseg.evaluation.vqa import yes_or_no
from flmm_detseg.structures import AnswerWithMasks, Prediction, Sample

ECE_BINS = 15


def presence_records(
    sample: Sample, prediction: Prediction, answers: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Facts of the phrases of a sample.

    Args:
        sample: With masks; an empty one where there is nothing. ``meta["absent"]`` may say of each phrase why.
        prediction: Of the same sample, with presence.
        answers: What the LMM itself answered to the question of whether there is what the phrase names; None where it
            was not asked.

    Returns:
        Per phrase ``record_id``, ``image_id``, ``phrase`` (index), ``text``, ``there``, ``absent`` (None where it is
        there), ``presence``, ``score`` (of the mask), and ``answer``.

    Raises:
        DataError: The sample has no masks, or the prediction no presence.
    """
    if sample.masks is None:
        raise DataError(f"{sample.record_id}: it has no masks, so nothing says what is there")
    if prediction.presence is None:
        raise DataError(f"{sample.record_id}: its prediction says nothing of presence")
    there = np.asarray(sample.masks.any((1, 2)))
    reasons = sample.meta.get(ABSENT_KEY) or [None] * len(there)
    presence, scores = prediction.presence.tolist(), prediction.scores.tolist()
    return [
        {
            "record_id": sample.record_id,
            "image_id": sample.image_id or sample.record_id,
            "phrase": k,
            "text": sample.phrase_text(k),
            "there": bool(there[k]),
            "absent": None if there[k] else reasons[k] or UNSTATED,
            "presence": round(presence[k], 6),
            "score": round(scores[k], 6),
            "answer": None if answers is None else answers[k],
        }
        for k in range(len(there))
    ]


def answer_presence_record(
    sample: Sample, there: bool, answer: AnswerWithMasks, *, with_answer: bool = True
) -> dict[str, Any]:
    """The fact of a question that is answered with mask tokens, in the form of :func:`presence_records`.

    Args:
        sample: The question; ``meta["absent"]`` may say why there is no such thing, ``meta["query"]`` its words.
        there: Whether there is what it asks for.
        answer: The model's, with presence.
        with_answer: Say whether it has a mask.

    Returns:
        As there, of one phrase: ``score`` is that of the best mask (0 without one), ``answer`` ``"yes"`` where the
        answer has a mask and else ``"no"``.

    Raises:
        DataError: Nothing is known of presence.
    """
    if answer.presence is None:
        raise DataError(f"{sample.record_id}: its answer says nothing of presence")
    scores = answer.prediction.scores.tolist()
    return {
        "record_id": sample.record_id,
        "image_id": sample.image_id or sample.record_id,
        "phrase": 0,
        "text": sample.meta.get("query") or sample.prompt or "",
        "there": there,
        "absent": None if there else str(sample.meta.get(ABSENT_KEY) or UNSTATED),
        "presence": round(answer.presence, 6),
        "score": round(max(scores, default=0.0), 6),
        "answer": ("yes" if scores else "no") if with_answer else None,
    }


def presence_figures(records: Sequence[Mapping[str, Any]], threshold: float) -> dict[str, float]:
    """Figures of :func:`presence_records`.

    Args:
        records: In any order.
        threshold: From which presence on something counts as there.

    Returns:
        Of the presence head, at ``threshold``: ``N_acc`` and ``N_acc_REASON`` (share of absent phrases that are found
        absent), ``T_acc`` (share of the others that are found there), each with ``_low`` and ``_high`` (95 %,
        bootstrap over images, whose phrases are no independent cases) and ``num_REASON``; ``AUROC``, ``ECE``. Of what
        it is compared with, on the same phrases: ``mask_score_*`` (the mask's score, at the threshold with the best
        mean of N_acc and T_acc on these very phrases), ``answer_*`` (the LMM's answer, where it was asked; what is
        neither yes nor no counts as wrong, ``answer_unread`` is its share), ``always_present_*``. What has no phrase to
        count is absent.
    """
    records = ordered(records)
    there = np.array([record["there"] for record in records], dtype=bool)
    reasons = [record["absent"] for record in records]
    presence = np.array([record["presence"] for record in records], dtype=np.float64)
    scores = np.array([record["score"] for record in records], dtype=np.float64)
    figures: dict[str, float] = {"num_phrases": len(records), "num_there": int(there.sum())}
    for reason in sorted({reason for reason in reasons if reason is not None}):
        figures[f"num_{reason}"] = reasons.count(reason)
    figures["threshold"] = threshold
    images = [record["image_id"] for record in records]
    figures.update(_shares("", there, reasons, images, (presence >= threshold) == there))
    if there.any() and not there.all():
        figures["AUROC"] = auroc(presence, there)
    if len(records):
        figures["ECE"] = expected_calibration_error(presence, there)
    if there.any() and not there.all():
        best = best_threshold(scores, there)
        figures["mask_score_threshold"] = best
        figures.update(_shares("mask_score_", there, reasons, images, (scores >= best) == there))
        figures["mask_score_AUROC"] = auroc(scores, there)
    if records and all(record["answer"] is not None for record in records):
        said = [yes_or_no(record["answer"]) for record in records]
        right = np.array([word == ("yes" if is_there else "no") for word, is_there in zip(said, there)])
        figures.update(_shares("answer_", there, reasons, images, right))
        figures["answer_unread"] = sum(word is None for word in said) / len(said)
    figures.update(_shares("always_present_", there, reasons, images, there))
    return figures


def expected_calibration_error(probabilities: np.ndarray, there: np.ndarray, bins: int = ECE_BINS) -> float:
    """How far probabilities of presence are from the share of phrases that are there.

    Args:
        probabilities: float ``[N]`` in [0, 1].
        there: bool ``[N]``.
        bins: Of equal width; one that begins at a probability holds it, the last one holds 1 as well.

    Returns:
        Mean over the phrases of ``|mean probability - share there|`` of their bin.

    Source: Naeini et al., Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI 2015; Guo et al., arXiv
    1706.04599, section 2, for their 15 bins.
    """
    place = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
    gaps = [
        abs(math.fsum(probabilities[place == number]) - int(there[place == number].sum()))
        for number in range(bins)
    ]
    return math.fsum(gaps) / len(probabilities)


def auroc(values: np.ndarray, there: np.ndarray) -> float:
    """Share of pairs of a phrase that is there and one that is not in which the first has the larger value; ties count
    half.

    Args:
        values: float ``[N]``.
        there: bool ``[N]``, both values occurring.

    Returns:
        In [0, 1]; 0.5 for values that say nothing.
    """
    absent = np.sort(values[~there])
    below = np.searchsorted(absent, values[there], side="left")
    upto = np.searchsorted(absent, values[there], side="right")
    return float((below + upto).sum() / (2 * len(absent) * int(there.sum())))


def best_threshold(values: np.ndarray, there: np.ndarray) -> float:
    """The threshold ("there" from it on) with the best mean of N_acc and T_acc, the lowest one of several.

    Args:
        values: float ``[N]``.
        there: bool ``[N]``, both values occurring.

    Returns:
        One of the values.
    """
    thresholds = np.unique(values)
    kept = [(values[there] >= limit).mean() for limit in thresholds]
    silent = [(values[~there] < limit).mean() for limit in thresholds]
    return float(thresholds[int(np.argmax(np.add(kept, silent)))])


def _shares(
    prefix: str, there: np.ndarray, reasons: Sequence[str | None], images: Sequence[str], right: np.ndarray
) -> dict[str, float]:
    """Shares of phrases that were judged rightly, with intervals."""
    groups = {"N_acc": ~there}
    for reason in sorted({reason for reason in reasons if reason is not None}):
        groups[f"N_acc_{reason}"] = np.array([found == reason for found in reasons])
    groups["T_acc"] = there
    groups = {name: members for name, members in groups.items() if members.any()}
    if not groups:
        return {}
    counted = np.stack(list(groups.values())).astype(np.float64)
    intervals = ratio_intervals(counted * right, counted, clusters=images)
    figures = {}
    for (name, members), (low, high) in zip(groups.items(), intervals, strict=True):
        figures[f"{prefix}{name}"] = float(right[members].mean())
        figures.update({f"{prefix}{name}_low": low, f"{prefix}{name}_high": high})
    return figures
