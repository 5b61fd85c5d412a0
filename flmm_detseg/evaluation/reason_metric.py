"""Reasoning and generalised referring segmentation: gIoU, cIoU, N-acc, T-acc, `[SEG]` counts, intervals, groups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric

from flmm_detseg.evaluation.bootstrap import ratio_intervals
from flmm_detseg.evaluation.box_records import ordered_images
from flmm_detseg.evaluation.instance_matches import instance_ious, matched_iou, num_matches
from flmm_detseg.evaluation.mask_answer_records import mask_answer_record
from flmm_detseg.evaluation.no_target import NoTargetRule, judge, no_target_rule
from flmm_detseg.registry import METRICS
from flmm_detseg.structures import Prediction, Sample


@METRICS.register_module()
class ReasonMetric(BaseMetric):
    """Figures of :func:`reason_figures` for MMEngine's validation loop, whose answers are the reference ones.

    Records that nothing fits have no ``[SEG]`` to read there and are left out: N-acc needs
    ``flmm-detseg evaluate reason``, which lets the model answer.

    Args:
        convention: One of :data:`~flmm_detseg.utils.choices.NO_TARGET_CONVENTIONS`.
        prefix: First part of the figures' names.
        collect_device: See MMEngine's ``BaseMetric``.

    Raises:
        ConfigError: Unknown convention.
    """

    default_prefix = "reason"

    def __init__(
        self, convention: str = "lisa", prefix: str | None = None, collect_device: str = "cpu"
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        no_target_rule(convention)
        self.convention = convention

    def process(self, data_batch: Mapping[str, Sequence[Sample]], data_samples: Sequence[Prediction]) -> None:
        """Adds a batch: ``data_batch["samples"]`` and their predictions, index by index."""
        for sample, prediction in zip(data_batch["samples"], data_samples, strict=True):
            if sample.phrases:
                self.results.append(mask_answer_record(sample, sample.text, prediction))

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Figures of all records."""
        return reason_figures(results, convention=self.convention)


def reason_figures(
    records: Sequence[Mapping[str, Any]],
    *,
    convention: str = "lisa",
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """Figures of answers with masks, as fractions.

    gIoU, cIoU, N-acc and T-acc compare the union of an answer's masks with the union of its targets (LISA's one mask);
    what an answer is worth where nothing fits the query is the convention's (:mod:`flmm_detseg.evaluation.no_target`).

    Args:
        records: Of :func:`~flmm_detseg.evaluation.mask_answer_records.mask_answer_record`, in any order.
        convention: One of :data:`~flmm_detseg.utils.choices.NO_TARGET_CONVENTIONS`.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        ``num_records``, ``num_no_target``; ``num_missing``, ``num_superfluous`` (masks fewer or more than targets,
        summed over records) and ``num_unparsable``; ``right_number``, the share of records with as many masks as
        targets; ``num_none_unparsable``, of the answers that say "none" where nothing fits, those that tried to give a
        mask all the same. Each of the following with its 95 % interval, ``NAME_low`` and ``NAME_high`` (bootstrap over
        images, whose queries are no independent cases): ``gIoU``
        (mean over records), ``cIoU`` (sum of intersections / sum of unions), ``N_acc`` (share of records without a
        target whose answer says so), ``N_acc_parsed`` (the same of answers without an unparsable ``[SEG]``), ``T_acc``
        (share of the others whose answer has masks); of the single masks
        ``instance_F1@0.5`` (as many pairs of IoU >= 0.5 as can be formed) and ``instance_mIoU`` (mean over targets of
        the IoU with the mask that was matched, 0 without one). The first five once more by group, as
        ``family=extremes/gIoU``. Figures without a record to count are absent.

    Raises:
        ConfigError: Unknown convention.

    Source: gIoU and cIoU: LISA (arXiv 2308.00692), section 4.1, without its 1e-5 under the line; N-acc and T-acc: GRES
    (arXiv 2306.00968), section 3.3.
    """
    rule = no_target_rule(convention)
    records = ordered_images(records)
    figures: dict[str, float] = {
        "num_records": len(records),
        "num_no_target": sum(judge(record, rule).no_target for record in records),
    }
    if not records:
        return figures
    extra = [record["num_masks"] - record["num_targets"] for record in records]
    figures["num_missing"] = sum(max(0, -number) for number in extra)
    figures["num_superfluous"] = sum(max(0, number) for number in extra)
    figures["num_unparsable"] = sum(record["num_unparsable"] for record in records)
    figures["num_none_unparsable"] = sum(
        found.no_target and found.says_none and record["num_unparsable"] > 0
        for record, found in ((record, judge(record, rule)) for record in records)
    )
    figures["right_number"] = extra.count(0) / len(records)
    figures.update(
        _with_intervals({**_united(records, rule), **_single(records)}, records, num_resamples, seed)
    )
    for group in sorted({(key, value) for record in records for key, value in record["groups"].items()}):
        key, value = group
        chosen = [record for record in records if record["groups"].get(key) == value]
        if len(chosen) == len(records):
            continue
        parts: dict[str, float] = {"num_records": len(chosen)}
        parts |= _with_intervals(_united(chosen, rule), chosen, num_resamples, seed)
        figures.update({f"{key}={value}/{name}": number for name, number in parts.items()})
    return figures


# Numerators and denominators by record, float64 [N]: every figure is a ratio of their sums.
_Ratios = dict[str, tuple[np.ndarray, np.ndarray]]


def _united(records: Sequence[Mapping[str, Any]], rule: NoTargetRule) -> _Ratios:
    judged = [judge(record, rule) for record in records]
    ious, intersections, unions, no_target, says_none = np.array(judged, dtype=np.float64).T
    parsed = np.array([record["num_unparsable"] == 0 for record in records])
    return {
        "gIoU": (ious, np.ones(len(judged))),
        "cIoU": (intersections, unions),
        "N_acc": (no_target * says_none, no_target),
        "N_acc_parsed": (parsed * no_target * says_none, parsed * no_target),
        "T_acc": ((1 - no_target) * (1 - says_none), 1 - no_target),
    }


def _single(records: Sequence[Mapping[str, Any]]) -> _Ratios:
    pairs = [instance_ious(record) for record in records]
    shapes = np.array([ious.shape for ious in pairs], dtype=np.float64)
    hits = np.array([2.0 * num_matches(ious >= 0.5) for ious in pairs])
    return {
        "instance_F1@0.5": (hits, shapes.sum(1)),
        "instance_mIoU": (np.array([matched_iou(ious) for ious in pairs]), shapes[:, 1]),
    }


def _with_intervals(
    ratios: _Ratios, records: Sequence[Mapping[str, Any]], num_resamples: int, seed: int
) -> dict[str, float]:
    ratios = {name: ratio for name, ratio in ratios.items() if ratio[1].any()}
    if not ratios:
        return {}
    above, below = (np.stack(rows) for rows in zip(*ratios.values(), strict=True))
    images = [record["image_id"] for record in records]
    intervals = ratio_intervals(above, below, clusters=images, num_resamples=num_resamples, seed=seed)
    figures = {}
    for (name, (numerators, denominators)), (low, high) in zip(ratios.items(), intervals, strict=True):
        figures[name] = math.fsum(numerators) / math.fsum(denominators)
        figures[f"{name}_low"], figures[f"{name}_high"] = low, high
    return figures
