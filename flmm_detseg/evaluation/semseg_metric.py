"""Semantic segmentation: IoU, accuracy, boundary F1 and boundary IoU."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric

from flmm_detseg.errors import ConfigError
from flmm_detseg.evaluation.box_records import ordered_images
from flmm_detseg.evaluation.semseg_records import semseg_record
from flmm_detseg.registry import METRICS
from flmm_detseg.structures import Sample


@METRICS.register_module()
class SemSegMetric(BaseMetric):
    """Semantic segmentation metrics of predicted label maps, as fractions; see :func:`semseg_figures`.

    Args:
        num_classes: Number of classes; None: that of the data set's ``metainfo["semantic_classes"]``.
        tolerance: Of the boundary F1; below 1 a share of the image diagonal, else pixels.
        band: Of the boundary IoU, as a share of the image diagonal.
        classwise: Also the IoU of every class.
        prefix: First part of the figures' names.
        collect_device: See MMEngine's ``BaseMetric``.
    """

    default_prefix = "semseg"

    def __init__(
        self,
        num_classes: int | None = None,
        tolerance: float = 0.0075,
        band: float = 0.02,
        classwise: bool = False,
        prefix: str | None = None,
        collect_device: str = "cpu",
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.num_classes, self.tolerance, self.band, self.classwise = num_classes, tolerance, band, classwise

    def process(
        self, data_batch: Mapping[str, Sequence[Sample]], data_samples: Sequence[torch.Tensor]
    ) -> None:
        """Adds a batch: ``data_batch["samples"]`` and their label maps, index by index."""
        num_classes = self._num_classes()
        for sample, prediction in zip(data_batch["samples"], data_samples, strict=True):
            record = semseg_record(sample, prediction, num_classes, tolerance=self.tolerance, band=self.band)
            self.results.append(record)

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Figures of all records."""
        classes = (self.dataset_meta or {}).get("semantic_classes")
        return semseg_figures(results, self._num_classes(), classes if self.classwise else None)

    def _num_classes(self) -> int:
        if self.num_classes is not None:
            return self.num_classes
        classes = (self.dataset_meta or {}).get("semantic_classes")
        if classes is None:
            raise ConfigError("SemSegMetric: the data set names no `semantic_classes`; set `num_classes`")
        return len(classes)


def semseg_figures(
    records: Sequence[Mapping[str, Any]], num_classes: int, classes: Sequence[str] | None = None
) -> dict[str, float]:
    """Figures of a data set, as fractions.

    Args:
        records: Of :func:`~flmm_detseg.evaluation.semseg_records.semseg_record`, in any order.
        num_classes: Number of classes.
        classes: Names, to also give ``IoU/NAME`` of every class that has one.

    Returns:
        ``num_images``, ``num_classes_present`` (with a target pixel) and

        - ``mIoU``: pixels summed over the data set, IoU per class, mean over the classes with a pixel in target or
          prediction (as mmseg and the ADE20K benchmark count);
        - ``aAcc``: share of right pixels; ``mAcc``: mean over the classes present of the share of right pixels;
        - ``boundary_F1``: F1 of contour precision and recall per image and class (in target or prediction), mean over
          the images of a class, then over classes. A class that fills its image has no contour: 1 if neither target
          nor prediction has one, 0 if only one of them;
        - ``boundary_IoU``: IoU of the bands, summed and averaged as in ``mIoU``.

        Figures without a pixel to count are absent.
    """
    records = ordered_images(records)
    confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
    bands = np.zeros((num_classes, 2), dtype=np.int64)
    contour_f1: dict[int, list[float]] = defaultdict(list)
    for record in records:
        for target, predicted, pixels in record["confusion"]:
            confusion[target, predicted] += pixels
        for label, intersection, union in record["band"]:
            bands[label] += (intersection, union)
        for label, *counts in record["contour"]:
            contour_f1[label].append(_contour_f1(*counts))
    right, targets = np.diag(confusion), confusion.sum(axis=1)
    unions = targets + confusion.sum(axis=0) - right
    figures: dict[str, float] = {"num_images": len(records), "num_classes_present": int((targets > 0).sum())}
    if not confusion.any():
        return figures
    figures["mIoU"] = _mean_ratio(right, unions)
    figures["aAcc"] = float(right.sum() / confusion.sum())
    figures["mAcc"] = _mean_ratio(right, targets)
    figures["boundary_F1"] = float(np.mean([np.mean(contour_f1[label]) for label in sorted(contour_f1)]))
    if bands[:, 1].any():
        figures["boundary_IoU"] = _mean_ratio(bands[:, 0], bands[:, 1])
    for label, name in enumerate(classes or ()):
        if unions[label]:
            figures[f"IoU/{name}"] = float(right[label] / unions[label])
    return figures


def _mean_ratio(parts: np.ndarray, wholes: np.ndarray) -> float:
    return float((parts[wholes > 0] / wholes[wholes > 0]).mean())


def _contour_f1(found_matched: int, found: int, truth_matched: int, truth: int) -> float:
    if not found and not truth:
        return 1.0
    if not found or not truth:
        return 0.0
    precision, recall = found_matched / found, truth_matched / truth
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
