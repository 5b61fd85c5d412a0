"""What a detector said about an image beside what the image shows, as plain (JSON-ready) facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.structures import InstanceData

from flmm_detseg.errors import DataError, RunError
from flmm_detseg.structures import DenseTargets, Sample
from flmm_detseg.utils.rle import encode_rle


def box_record(sample: Sample, prediction: InstanceData) -> dict[str, Any]:
    """Facts of one image.

    Args:
        sample: With ``dense`` targets: boxes and labels, masks where it has them.
        prediction: ``bboxes`` float ``[N, 4]`` xyxy in original image pixels and ``labels`` ``[N]``; ``scores``
            ``[N]`` unless the boxes were read from text, ``masks`` bool ``[N, H, W]`` where masks are predicted.

    Returns:
        ``record_id``, ``image_id``, ``image_size`` ``[H, W]``; of the prediction ``boxes_xyxy``, ``labels`` and,
        where it has them, ``scores`` and ``masks`` (compressed RLE); ``target`` with ``boxes_xyxy``, ``labels``,
        ``crowd``, ``areas`` (pixels of the mask, else of the box) and, where it has them, ``masks``.

    Raises:
        DataError: The sample has no box targets.
        RunError: The prediction's parts do not belong together, or hold NaN.
    """
    boxes = _numbers(prediction.bboxes)
    _check_prediction(sample, prediction, boxes)
    record: dict[str, Any] = {
        "record_id": sample.record_id,
        "image_id": sample.meta.get("coco_image_id", sample.image_id),
        "image_size": list(sample.image_size),
        "boxes_xyxy": _floats(boxes),
        "labels": _integers(prediction.labels),
        "target": _target(sample),
    }
    if "scores" in prediction:
        record["scores"] = _floats(_numbers(prediction.scores))
    if "masks" in prediction:
        record["masks"] = [encode_rle(mask) for mask in _array(prediction.masks).astype(bool)]
    return record


def ordered_images(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Records sorted by record id, repeated ones (padding of distributed samplers) once."""
    unique = {record["record_id"]: record for record in records}
    return [unique[key] for key in sorted(unique)]


def _target(sample: Sample) -> dict[str, Any]:
    dense = sample.dense or DenseTargets()
    if dense.boxes_xyxy is None or dense.labels is None:
        raise DataError(
            f"{sample.record_id}: it has no boxes to evaluate against (`dense.boxes_xyxy`, `labels`)."
        )
    boxes = np.asarray(dense.boxes_xyxy, dtype=np.float32).reshape(-1, 4)
    crowd = np.zeros(len(boxes), dtype=bool) if dense.crowd is None else dense.crowd
    target: dict[str, Any] = {
        "boxes_xyxy": _floats(boxes),
        "labels": _integers(dense.labels),
        "crowd": [bool(value) for value in crowd],
        "areas": _floats((boxes[:, 2:] - boxes[:, :2]).prod(1)),
    }
    if dense.masks is not None:
        target["areas"] = [int(mask.sum()) for mask in dense.masks]
        target["masks"] = [encode_rle(mask) for mask in dense.masks]
    return target


def _check_prediction(sample: Sample, prediction: InstanceData, boxes: np.ndarray) -> None:
    num = len(boxes)
    shapes = {"bboxes": (num, 4), "labels": (num,), "scores": (num,), "masks": (num, *sample.image_size)}
    for key, expected in shapes.items():
        if key in prediction and tuple(prediction[key].shape) != expected:
            raise RunError(
                f"{sample.record_id}: predicted {key} have shape {tuple(prediction[key].shape)}, expected {expected}."
            )
    for key in ("bboxes", "scores"):
        if key in prediction and not np.isfinite(_numbers(prediction[key])).all():
            raise RunError(
                f"{sample.record_id}: predicted {key} hold NaN. Check the checkpoint and precision."
            )


def _array(values: torch.Tensor | np.ndarray) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _numbers(values: torch.Tensor | np.ndarray) -> np.ndarray:
    return _array(values.float() if isinstance(values, torch.Tensor) else values).astype(np.float32)


def _floats(values: np.ndarray) -> list[Any]:
    """Nested lists with the shortest decimals that name each float32."""
    if values.ndim > 1:
        return [_floats(row) for row in values]
    return [float(str(value)) for value in values]


def _integers(values: torch.Tensor | np.ndarray) -> list[int]:
    return [int(value) for value in _array(values)]
