"""Facts of one answer in words, boxes and masks beside what the image shows, as plain (JSON-ready) numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.structures import InstanceData

from flmm_detseg.datasets.semantic_maps import IGNORE
from flmm_detseg.evaluation.box_records import box_record
from flmm_detseg.language import ParsedAnswer, dequantise_boxes
from flmm_detseg.language.wording import is_repeated
from flmm_detseg.structures import Sample


def class_of(label: str, classes: Sequence[str]) -> int:
    """The class that a name in an answer means.

    Args:
        label: ``"ring"``, ``"small red ring"``.
        classes: Of the data set.

    Returns:
        Index of the class with that name, else of the longest one that the name ends with as whole words (case
        ignored); ``len(classes)`` where there is none.
    """
    words = label.casefold().split()
    best, length = len(classes), 0
    for number, name in enumerate(classes):
        own = name.casefold().split()
        if own and words[-len(own) :] == own and len(own) > length:
            best, length = number, len(own)
    return best


def answer_boxes(sample: Sample, parsed: ParsedAnswer, classes: Sequence[str]) -> dict[str, Any]:
    """The boxes of an answer beside the objects of its image.

    Boxes that repeat another of the same class (IoU above 0.95, whatever the names) count once: an answer may mention
    an object twice.

    Args:
        sample: With boxes and labels in ``dense``.
        parsed: The answer.
        classes: Of the data set.

    Returns:
        Facts of :func:`~flmm_detseg.evaluation.box_records.box_record`, with ``num_repeated`` and ``num_unknown_names``
        (names that are no class; their boxes have a label of their own). The boxes of masks are left out.
    """
    kept: dict[int, list[Any]] = {}
    boxes, labels, repeated = [], [], parsed.report.num_repeated
    for item in parsed.answer.detections or ():
        label = class_of(item.label, classes)
        if is_repeated(item.box, kept.setdefault(label, [])):
            repeated += 1
            continue
        kept[label].append(item.box)
        boxes.append(item.box)
        labels.append(label)
    corners = dequantise_boxes(np.asarray(boxes, dtype=np.float64).reshape(-1, 4), sample.image_size)
    found = InstanceData(
        bboxes=torch.from_numpy(corners).float(), labels=torch.tensor(labels, dtype=torch.int64)
    )
    record = box_record(sample, found)
    record["target"].pop("masks", None)
    return {**record, "num_repeated": repeated, "num_unknown_names": labels.count(len(classes))}


def answer_masks(
    sample: Sample, masks: np.ndarray, names: Sequence[str], classes: Sequence[str]
) -> dict[str, Any]:
    """The masks of an answer beside those of its image: objects, or where there are none, classes of the label map.

    Args:
        sample: With masks and labels, or a label map, in ``dense``; crowd regions are left out.
        masks: bool ``[P, H, W]``.
        names: What the answer calls each.
        classes: Of the data set.

    Returns:
        ``labels`` ``[P]``, ``target_labels`` ``[T]``, pixels ``areas`` ``[P]``, ``target_areas`` ``[T]``,
        ``intersections`` ``[P][T]``, and ``united``: per class that is named or there ``[intersection, union]`` of the
        united masks.
    """
    targets, target_labels = _targets(sample)
    labels = [class_of(name, classes) for name in names]
    united = []
    for label in sorted({*labels, *target_labels}):
        pair = [
            masks[[own == label for own in labels]].any(0),
            targets[[own == label for own in target_labels]].any(0),
        ]
        united.append([int((pair[0] & pair[1]).sum()), int((pair[0] | pair[1]).sum())])
    return {
        "labels": labels,
        "target_labels": target_labels,
        "areas": [int(mask.sum()) for mask in masks],
        "target_areas": [int(mask.sum()) for mask in targets],
        "intersections": [[int((mask & target).sum()) for target in targets] for mask in masks],
        "united": united,
    }


def _targets(sample: Sample) -> tuple[np.ndarray, list[int]]:
    dense = sample.dense
    assert dense is not None
    if dense.masks is not None and dense.labels is not None:
        kept = np.ones(len(dense.labels), dtype=bool) if dense.crowd is None else ~dense.crowd
        return dense.masks[kept], dense.labels[kept].tolist()
    assert dense.semantic is not None
    values = [int(value) for value in np.unique(dense.semantic) if value != IGNORE]
    masks = [dense.semantic == value for value in values]
    return np.stack(masks) if masks else np.zeros((0, *sample.image_size), dtype=bool), values
