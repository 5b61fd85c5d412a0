"""Figures of answers in words, boxes and masks, all of the same run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flmm_detseg.evaluation.bootstrap import ratio_intervals
from flmm_detseg.evaluation.box_f1 import match_counts, text_box_figures
from flmm_detseg.evaluation.box_records import ordered_images
from flmm_detseg.evaluation.instance_matches import instance_ious, num_matches

_COUNTS = ("num_parsed", "num_bad", "num_repaired", "num_unread_masks")


def joint_figures(
    records: Sequence[Mapping[str, Any]], *, num_resamples: int = 1000, seed: int = 0
) -> dict[str, float]:
    """Figures of whole answers, as fractions.

    Args:
        records: Of the joint evaluation (:mod:`flmm_detseg.engine.evaluation.joint`), in any order.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        ``num_records``; ``num_unparsable`` (answers without a section that was asked for), ``num_truncated`` (ended by
        the limit of tokens), items ``num_parsed``, ``num_bad``, ``num_repaired``, ``num_unread_masks`` (mask tokens
        that gave no mask) and ``parse_rate``. Of boxes ``num_boxes``, ``num_repeated``, ``num_unknown_names``,
        ``precision``, ``recall`` and ``F1``, each ``@0.5`` and ``@mean``. Of masks ``gIoU`` (mean over the pairs of an
        image and a class that it shows or the answer names, of the IoU of the united masks) and ``mask_F1@0.5`` (single
        masks of one class, one to one). ``answer_accuracy``, where answers can be scored. ``base_NAME``: the boxes of
        the LMM as it was. ``F1@0.5``, ``gIoU``, ``mask_F1@0.5`` and ``answer_accuracy`` have 95 % intervals over
        images, ``NAME_low`` and ``NAME_high``. Figures without anything to count are absent.
    """
    records = ordered_images(records)
    figures: dict[str, float] = {
        "num_records": len(records),
        "num_unparsable": sum(bool(record["missing"]) for record in records),
        "num_truncated": sum(record["truncated"] for record in records),
    }
    for key in _COUNTS:
        figures[key] = sum(record[key] for record in records)
    begun = figures["num_parsed"] + figures["num_bad"]
    figures["parse_rate"] = figures["num_parsed"] / begun if begun else 1.0
    ratios: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for prefix, key in (("", "boxes"), ("base_", "base_boxes")):
        found = [record[key] for record in records if record[key] is not None]
        if not found:
            continue
        own = text_box_figures(found)
        del own["num_images"]
        for name in ("num_repeated", "num_unknown_names"):
            own[name] = sum(record[name] for record in found)
        figures.update({f"{prefix}{name}": value for name, value in own.items()})
        # Every figure is a ratio of sums over records.
        counts = np.array([(0, 0, 0) if r[key] is None else match_counts(r[key])[0] for r in records])
        ratios[f"{prefix}F1@0.5"] = 2.0 * counts[:, 0], counts[:, 1:].sum(1).astype(np.float64)
    ratios |= _masks(records)
    scores = [record["score"] for record in records]
    ratios["answer_accuracy"] = (
        np.array([score or 0.0 for score in scores]),
        np.array([float(score is not None) for score in scores]),
    )
    return {**figures, **_with_intervals(records, ratios, num_resamples, seed)}


def _masks(records: Sequence[Mapping[str, Any]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    overlaps, num_pairs, hits, num_masks = np.zeros((4, len(records)))
    for index, record in enumerate(records):
        masks = record["masks"]
        if masks is None:
            continue
        overlaps[index] = sum(shared / union if union else 0.0 for shared, union in masks["united"])
        num_pairs[index] = len(masks["united"])
        labels = np.asarray(masks["labels"]).reshape(-1, 1) == np.asarray(masks["target_labels"]).reshape(
            1, -1
        )
        hits[index] = 2 * num_matches((instance_ious(masks) >= 0.5) & labels)
        num_masks[index] = len(masks["areas"]) + len(masks["target_areas"])
    return {"gIoU": (overlaps, num_pairs), "mask_F1@0.5": (hits, num_masks)}


def _with_intervals(
    records: Sequence[Mapping[str, Any]],
    ratios: Mapping[str, tuple[np.ndarray, np.ndarray]],
    num_resamples: int,
    seed: int,
) -> dict[str, float]:
    ratios = {name: ratio for name, ratio in ratios.items() if ratio[1].any()}
    if not ratios:
        return {}
    # Several questions about one image are drawn together.
    _, image = np.unique([str(record["image_id"]) for record in records], return_inverse=True)
    above, below = (
        np.stack([np.bincount(image, weights=row) for row in rows])
        for rows in zip(*ratios.values(), strict=True)
    )
    figures = {}
    intervals = ratio_intervals(above, below, num_resamples=num_resamples, seed=seed)
    for (name, (numerators, denominators)), (low, high) in zip(ratios.items(), intervals, strict=True):
        figures[name] = math.fsum(numerators) / math.fsum(denominators)
        figures[f"{name}_low"], figures[f"{name}_high"] = low, high
    return figures
