"""Grounded conversation generation: AP50 of the masks, mIoU, recall of phrases with their masks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flmm_detseg.evaluation.box_records import ordered_images
from flmm_detseg.evaluation.instance_matches import instance_ious, num_matches
from flmm_detseg.evaluation.vqa_text import normalise_answer

# COCO's: recall levels, and how many masks of an image count.
_LEVELS = np.linspace(0, 1, 101)
_MAX_MASKS = 100
# COCO compares with a threshold that rounding does not miss.
_HALF = 0.5 - 1e-10


def gcg_figures(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Figures of captions whose phrases have masks, as fractions.

    GLaMM gives every mask the score 1.0: ``AP50_unranked`` and ``mIoU`` are computed as its published figures are,
    ``AP50`` is not (by their scores, sure masks come first). Phrases are alike from a token F1 of 0.5 on
    (:func:`phrase_similarity`), where GLaMM compares BERT's features: ``phrase_recall`` is not comparable either.

    Args:
        records: Of :func:`~flmm_detseg.evaluation.mask_answer_records.mask_answer_record`, one an image, in any order.

    Returns:
        ``num_records``, ``num_targets``, ``num_masks``; ``AP50`` (COCO's, one class, up to 100 masks an image, by their
        scores) and ``AP50_unranked`` (the same with equal scores: masks count in the order of records and answers);
        ``mIoU``: per image the mean IoU of the pairs that greedy matching by IoU forms, and the mean over
        images, so a missing mask costs AP50 and recall, not this; ``phrase_recall``: share of targets with a mask of
        IoU >= 0.5 whose phrase is alike, one to one, over records whose phrases are known. Figures without a target to
        count are absent.

    Source: GLaMM (arXiv 2311.03356), section 5.1.
    """
    records = ordered_images(records)
    figures: dict[str, float] = {
        "num_records": len(records),
        "num_targets": sum(record["num_targets"] for record in records),
        "num_masks": sum(record["num_masks"] for record in records),
    }
    if not figures["num_targets"]:
        return figures
    pairs = [instance_ious(record) for record in records]
    figures["AP50"] = _average_precision([record["scores"] for record in records], pairs)
    figures["AP50_unranked"] = _average_precision([[1.0] * len(ious) for ious in pairs], pairs)
    means = [_greedy_mean(ious) for ious in pairs if ious.shape[1]]
    figures["mIoU"] = math.fsum(means) / len(means)
    named = [(r, ious) for r, ious in zip(records, pairs, strict=True) if r["target_names"]]
    if named:
        found = sum(num_matches((ious >= 0.5) & _alike(record)) for record, ious in named)
        figures["phrase_recall"] = found / sum(record["num_targets"] for record, _ in named)
    return figures


def phrase_similarity(first: str, second: str) -> float:
    """Token F1 of two phrases in the form in which answers are compared (small letters, no articles).

    Args:
        first: A phrase.
        second: Another one.

    Returns:
        2 x common words / words of both, in [0, 1]; 0 where one has no word.
    """
    left, right = (Counter(normalise_answer(text).split()) for text in (first, second))
    if not left or not right:
        return 0.0
    return 2 * (left & right).total() / (left.total() + right.total())


def _alike(record: Mapping[str, Any]) -> np.ndarray:
    """Which phrases are alike, bool ``[P, T]``; none where the answer's phrases are not known."""
    names = record["names"] or [""] * record["num_masks"]
    alike = [[phrase_similarity(name, target) >= 0.5 for target in record["target_names"]] for name in names]
    return np.array(alike, dtype=bool).reshape(len(names), record["num_targets"])


def _greedy_mean(ious: np.ndarray) -> float:
    """Mean IoU of the pairs that are formed by taking the largest IoU above 0 again and again."""
    left, formed = ious.copy(), []
    while left.size and left.max() > 0:
        row, column = np.unravel_index(int(left.argmax()), left.shape)
        formed.append(float(left[row, column]))
        left = np.delete(np.delete(left, row, 0), column, 1)
    return math.fsum(formed) / len(formed) if formed else 0.0


def _average_precision(scores_of: Sequence[Sequence[float]], pairs: Sequence[np.ndarray]) -> float:
    """COCO's AP at IoU 0.5 of one class, targets of all sizes, none of them a crowd; masks' scores by image."""
    scores: list[float] = []
    hits: list[bool] = []
    for own, ious in zip(scores_of, pairs, strict=True):
        order = np.argsort([-score for score in own], kind="stable")[:_MAX_MASKS]
        free = np.ones(ious.shape[1], dtype=bool)
        for row in order:
            overlaps = np.where(free, ious[row], -1.0)
            # Of equal overlaps COCO takes the last.
            best = len(overlaps) - 1 - int(overlaps[::-1].argmax()) if len(overlaps) else -1
            hit = best >= 0 and overlaps[best] >= _HALF
            if hit:
                free[best] = False
            scores.append(own[row])
            hits.append(bool(hit))
    if not hits:
        return 0.0
    sorted_hits = np.array(hits)[np.argsort([-score for score in scores], kind="stable")]
    true = sorted_hits.cumsum()
    recall = true / sum(ious.shape[1] for ious in pairs)
    precision = np.maximum.accumulate((true / np.arange(1, len(true) + 1))[::-1])[::-1]
    places = np.searchsorted(recall, _LEVELS, side="left")
    return float(np.append(precision, 0.0)[places].mean())
