"""Panoptic narrative grounding: average recall by category of phrase."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmengine.evaluator import BaseMetric

from flmm_detseg.evaluation.records import ordered, phrase_records
from flmm_detseg.evaluation.ref_seg_metric import phrase_iou
from flmm_detseg.registry import METRICS
from flmm_detseg.structures import Prediction, Sample

_GROUPS: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "all": lambda record: True,
    "thing": lambda record: record["is_thing"] is True,
    "stuff": lambda record: record["is_thing"] is False,
    "singular": lambda record: record["is_plural"] is False,
    "plural": lambda record: record["is_plural"] is True,
}


@METRICS.register_module()
class PNGMetric(BaseMetric):
    """Average recall of phrase masks, coarse and refined side by side, as fractions.

    Recall at a threshold t is the share of phrases with IoU > t; average recall is its integral over t from
    0 to 1. The integral of one phrase's indicator is its IoU, so average recall is the mean IoU (closed
    form).

    Figures: ``{coarse,refined}_average_recall_{all,thing,stuff,singular,plural}`` and
        ``{coarse,refined}_acc@0.5``
    (share of phrases with IoU >= 0.5); groups without a phrase are absent. Empty targets count with IoU 0.

    Args:
        prefix: First part of the figures' names.
        collect_device: See MMEngine's ``BaseMetric``.

    Source: González et al., Panoptic Narrative Grounding, ICCV 2021 (arXiv 2109.04988), section 5.
    """

    default_prefix = "png"

    def __init__(self, prefix: str | None = None, collect_device: str = "cpu") -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)

    def process(self, data_batch: Mapping[str, Sequence[Sample]], data_samples: Sequence[Prediction]) -> None:
        """Adds a batch: ``data_batch["samples"]`` and their predictions, index by index."""
        for sample, prediction in zip(data_batch["samples"], data_samples, strict=True):
            self.results.append(phrase_records(sample, prediction))

    def compute_metrics(self, results: list[list[dict[str, Any]]]) -> dict[str, float]:
        """Figures of all records."""
        return png_figures([record for records in results for record in records])


def png_figures(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Figures of :class:`PNGMetric` from per-phrase records.

    Args:
        records: Of :func:`~flmm_detseg.evaluation.records.phrase_records`, in any order.

    Returns:
        ``num_phrases`` and the figures.
    """
    records = ordered(records)
    figures: dict[str, float] = {"num_phrases": len(records)}
    for kind in ("refined", "coarse"):
        if not records or kind not in records[0]:
            continue
        for name, belongs in _GROUPS.items():
            ious = [phrase_iou(record, kind) for record in records if belongs(record)]
            if ious:
                figures[f"{kind}_average_recall_{name}"] = math.fsum(ious) / len(ious)
        hits = [phrase_iou(record, kind) >= 0.5 for record in records]
        figures[f"{kind}_acc@0.5"] = sum(hits) / len(hits)
    return figures
