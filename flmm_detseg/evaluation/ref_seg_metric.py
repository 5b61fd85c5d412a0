"""Referring segmentation: cIoU, gIoU, precision at IoU, box accuracy, threshold sweep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.evaluator import BaseMetric

from flmm_detseg.errors import ConfigError
from flmm_detseg.evaluation.records import SWEEP_THRESHOLDS, ordered, phrase_records
from flmm_detseg.registry import METRICS
from flmm_detseg.structures import Prediction, Sample
from flmm_detseg.utils.choices import EMPTY_CONVENTIONS

PRECISION_AT = (0.5, 0.6, 0.7, 0.8, 0.9)


@METRICS.register_module()
class RefSegMetric(BaseMetric):
    """Referring segmentation metrics of the coarse and the refined masks side by side, as fractions.

    Figures are named ``coarse_cIoU`` (mask head), ``refined_cIoU`` (refiner; absent without one) and so on:

    - ``cIoU``: sum of intersections / sum of unions; ``gIoU``: mean IoU over the phrases;
    - ``P@0.5`` ... ``P@0.9``: share of phrases with at least that IoU;
    - ``box_acc@0.5``: share of phrases whose mask's box has IoU >= 0.5 with the box of the target mask;
    - with ``threshold_sweep``: ``best_threshold`` and ``best_threshold_cIoU`` over probabilities 0.05 ...
    0.95.

    Phrases whose target is empty (no such object) follow a named convention:

    - ``skip``: they do not count at all;
    - ``count_as_zero``: IoU 0 whatever is predicted, the predicted area enters cIoU's union (mmdet's
    convention); - ``grefcoco``: IoU 1 if nothing is predicted, else 0 with its area in cIoU's union; P@ and
    box accuracy leave
      them out; adds ``N_acc`` and ``T_acc``, the share of empty (non-empty) targets predicted empty
      (non-empty).

    Args:
        empty: ``"skip"``, ``"count_as_zero"`` or ``"grefcoco"``.
        threshold_sweep: Add the best threshold and its cIoU.
        prefix: First part of the figures' names.
        collect_device: See MMEngine's ``BaseMetric``.

    Raises:
        ConfigError: Unknown convention.

    Source: cIoU and P@ as in LAVT (arXiv 2112.02244); empty targets: GRES (arXiv 2306.00968), section 3.3.
    """

    default_prefix = "refseg"

    def __init__(
        self,
        empty: str = "skip",
        threshold_sweep: bool = False,
        prefix: str | None = None,
        collect_device: str = "cpu",
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        _check_convention(empty)
        self.empty, self.threshold_sweep = empty, threshold_sweep

    def process(self, data_batch: Mapping[str, Sequence[Sample]], data_samples: Sequence[Prediction]) -> None:
        """Adds a batch: ``data_batch["samples"]`` and their predictions, index by index."""
        for sample, prediction in zip(data_batch["samples"], data_samples, strict=True):
            self.results.append(phrase_records(sample, prediction, sweep=self.threshold_sweep))

    def compute_metrics(self, results: list[list[dict[str, Any]]]) -> dict[str, float]:
        """Figures of all records."""
        return ref_seg_figures([record for records in results for record in records], empty=self.empty)


def ref_seg_figures(records: Sequence[Mapping[str, Any]], *, empty: str = "skip") -> dict[str, float]:
    """Figures of :class:`RefSegMetric` from per-phrase records.

    Args:
        records: Of :func:`~flmm_detseg.evaluation.records.phrase_records`, in any order.
        empty: Convention for empty targets.

    Returns:
        ``num_phrases``, ``num_empty_targets`` and the figures; figures without a phrase to count are absent.

    Raises:
        ConfigError: Unknown convention.
    """
    _check_convention(empty)
    records = ordered(records)
    figures: dict[str, float] = {
        "num_phrases": len(records),
        "num_empty_targets": sum(record["target_area"] == 0 for record in records),
    }
    for kind in ("refined", "coarse"):
        if records and kind in records[0]:
            for name, value in _figures_of_kind(records, kind, empty).items():
                figures[f"{kind}_{name}"] = value
    return figures


def _check_convention(empty: str) -> None:
    if empty not in EMPTY_CONVENTIONS:
        raise ConfigError(f"`empty` is {empty!r}; allowed: {', '.join(EMPTY_CONVENTIONS)}")


def phrase_iou(record: Mapping[str, Any], kind: str) -> float:
    """IoU of one phrase; 0 where both masks are empty."""
    fact = record[kind]
    union = fact["area"] + record["target_area"] - fact["intersection"]
    return fact["intersection"] / union if union else 0.0


def _box_iou(record: Mapping[str, Any], kind: str) -> float:
    fact = record[kind]
    union = fact["box_area"] + record["target_box_area"] - fact["box_intersection"]
    return fact["box_intersection"] / union if union else 0.0


def _figures_of_kind(records: Sequence[Mapping[str, Any]], kind: str, empty: str) -> dict[str, float]:
    present = [record for record in records if record["target_area"] > 0]
    absent = [record for record in records if record["target_area"] == 0]
    counted = present if empty == "skip" else records
    ious = [phrase_iou(record, kind) for record in present]
    rated, box_ious = list(ious), [_box_iou(record, kind) for record in present]
    figures: dict[str, float] = {}
    if empty == "count_as_zero":
        ious += [0.0] * len(absent)
        rated, box_ious = list(ious), box_ious + [0.0] * len(absent)
    elif empty == "grefcoco":
        silent = [record[kind]["area"] == 0 for record in absent]
        ious += [float(is_silent) for is_silent in silent]
        figures.update(_share("N_acc", silent))
        figures.update(_share("T_acc", [record[kind]["area"] > 0 for record in present]))
    intersection = sum(record[kind]["intersection"] for record in counted)
    union = sum(record[kind]["area"] + record["target_area"] for record in counted) - intersection
    if union:
        figures["cIoU"] = intersection / union
    if ious:
        figures["gIoU"] = math.fsum(ious) / len(ious)
    for limit in PRECISION_AT:
        figures.update(_share(f"P@{limit}", [iou >= limit for iou in rated]))
    figures.update(_share("box_acc@0.5", [iou >= 0.5 for iou in box_ious]))
    if counted and "sweep_area" in counted[0][kind]:
        figures.update(_best_threshold(counted, kind))
    return figures


def _share(name: str, flags: Sequence[bool]) -> dict[str, float]:
    return {name: sum(flags) / len(flags)} if flags else {}


def _best_threshold(records: Sequence[Mapping[str, Any]], kind: str) -> dict[str, float]:
    """The threshold with the highest cIoU; the lowest one among equals."""
    target = sum(record["target_area"] for record in records)
    best = (-1.0, 0.0)
    for index, threshold in enumerate(SWEEP_THRESHOLDS):
        intersection = sum(record[kind]["sweep_intersection"][index] for record in records)
        union = sum(record[kind]["sweep_area"][index] for record in records) + target - intersection
        best = max(best, (intersection / union if union else 0.0, -threshold))
    return {"best_threshold": -best[1], "best_threshold_cIoU": best[0]}
