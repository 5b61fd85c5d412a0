"""Per-phrase facts of a prediction, as integers: later averages do not depend on order or sharding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flmm_detseg.errors import DataError, RunError
from flmm_detseg.ops.boxes import masks_to_boxes
from flmm_detseg.ops.masks import mask_areas, pieces
from flmm_detseg.structures import Prediction, Sample

# Thresholds on the probability, 0.05 ... 0.95.
SWEEP_THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))


def phrase_records(
    sample: Sample, prediction: Prediction, *, sweep: bool = False, min_presence: float | None = None
) -> list[dict[str, Any]]:
    """Compares a prediction with the targets of its sample.

    Args:
        sample: With masks ``[K, H, W]``.
        prediction: Of the same sample, on any device.
        sweep: Also compare at the thresholds :data:`SWEEP_THRESHOLDS`.
        min_presence: Phrases whose presence is lower count as if their masks were empty, at every threshold; None: all
            masks count as they are.

    Returns:
        One plain (JSON-ready) dict per phrase: ``record_id``, ``phrase`` (index), ``text``, ``is_thing``,
        ``is_plural``, ``score``, ``target_area`` (pixels), and per kind of mask (``coarse``; ``refined``
        where there is a refiner) a dict of pixel counts: ``intersection``, ``area``, ``box_intersection``,
        ``box_area`` and, with ``sweep``, lists of ``intersection`` and ``area`` by threshold.
        ``target_box_area`` belongs to the target.

    Raises:
        DataError: The sample has no masks, or the prediction belongs to another record or has another shape.
        RunError: Logits are NaN.
    """
    if sample.masks is None:
        raise DataError(f"{sample.record_id}: it has no masks to evaluate against.")
    expected = (len(sample.phrases), *sample.image_size)
    predicted = (len(prediction.packed), *prediction.packed.size)
    if prediction.record_id != sample.record_id or predicted != expected:
        raise DataError(
            f"{sample.record_id}: the prediction is of record {prediction.record_id!r} with shape "
            f"{predicted}, expected {expected}."
        )
    target = torch.from_numpy(sample.masks).to(prediction.scores.device)
    kinds = {"coarse": prediction.coarse}
    if prediction.refined is not None:
        kinds["refined"] = prediction.refined
    facts: dict[str, dict[str, list[Any]]] = {kind: {} for kind in kinds}
    # A few masks at a time: logits of full size are large.
    for part in pieces(target, prediction.image_size):
        for kind, maps in kinds.items():
            logits = maps.enlarge(part)
            if logits.isnan().any():
                raise RunError(
                    f"{sample.record_id}: the {kind} mask logits contain NaN. Check the checkpoint and precision."
                )
            for name, values in _compare(logits, target[part], sweep).items():
                facts[kind].setdefault(name, []).extend(values)
    target_boxes = masks_to_boxes(target).long()
    target_area, target_box_area = _to_list(mask_areas(target)), _to_list(_box_area(target_boxes))
    if min_presence is not None:
        prediction = prediction.only_present(min_presence)
        assert prediction.presence is not None  # it was refused just now
        for k in (prediction.presence < min_presence).nonzero()[:, 0].tolist():
            for fact in facts.values():
                for values in fact.values():
                    values[k] = [0] * len(values[k]) if isinstance(values[k], list) else 0
    scores = prediction.scores.tolist()
    return [
        {
            "record_id": sample.record_id,
            "phrase": k,
            "text": sample.phrase_text(k),
            "is_thing": phrase.is_thing,
            "is_plural": phrase.is_plural,
            "score": round(scores[k], 6),
            "target_area": target_area[k],
            "target_box_area": target_box_area[k],
            **{kind: {name: values[k] for name, values in fact.items()} for kind, fact in facts.items()},
        }
        for k, phrase in enumerate(sample.phrases)
    ]


def _box_area(boxes_xyxy: Tensor) -> Tensor:
    return (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).clamp(min=0).prod(1)


def _to_list(values: Tensor) -> list[int]:
    return [int(value) for value in values.tolist()]


def _compare(logits: Tensor, target: Tensor, sweep: bool) -> dict[str, list[Any]]:
    """Pixel counts per phrase at probability 0.5 (logit 0) and, if asked, at every threshold of the sweep."""
    masks = logits > 0
    boxes, target_boxes = masks_to_boxes(masks).long(), masks_to_boxes(target).long()
    overlap = torch.cat(
        [torch.maximum(boxes[:, :2], target_boxes[:, :2]), torch.minimum(boxes[:, 2:], target_boxes[:, 2:])],
        dim=1,
    )
    facts: dict[str, list[Any]] = {
        "intersection": _to_list(mask_areas(masks & target)),
        "area": _to_list(mask_areas(masks)),
        "box_intersection": _to_list(_box_area(overlap)),
        "box_area": _to_list(_box_area(boxes)),
    }
    if sweep:
        limits = torch.logit(torch.tensor(SWEEP_THRESHOLDS, dtype=torch.float64)).float()
        limits[SWEEP_THRESHOLDS.index(0.5)] = 0.0
        # Number of thresholds a pixel is strictly above; a histogram of it gives every mask's area at once.
        levels = torch.bucketize(logits, limits.to(logits.device))
        facts["sweep_area"] = _areas_above(levels, None)
        facts["sweep_intersection"] = _areas_above(levels, target)
    return facts


def _areas_above(levels: Tensor, inside: Tensor | None) -> list[list[int]]:
    """Per phrase: pixels above each threshold (inside a mask if given)."""
    num = len(SWEEP_THRESHOLDS)
    areas = []
    for k, level in enumerate(levels):
        values = level.flatten() if inside is None else level[inside[k]]
        histogram = torch.bincount(values, minlength=num + 1)
        areas.append(_to_list(histogram.flip(0).cumsum(0).flip(0)[1:]))
    return areas


def ordered(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Records sorted by record id and phrase, repeated ones (padding of distributed samplers) once."""
    unique = {(record["record_id"], record["phrase"]): record for record in records}
    return [unique[key] for key in sorted(unique)]
