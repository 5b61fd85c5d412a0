"""From the logits of K masks to a prediction, a few masks at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from flmm_detseg.ops.boxes import masks_to_boxes
from flmm_detseg.ops.masks import above, mask_scores, pieces
from flmm_detseg.structures import LogitMaps, PackedMasks, Prediction, Sample
from flmm_detseg.utils.finite import require_finite


def mask_prediction(
    sample: Sample,
    coarse_logits: Tensor,
    refined: LogitMaps | None = None,
    attention: Tensor | None = None,
    presence: Tensor | None = None,
) -> Prediction:
    """Boxes, scores and packed masks: of full size only packed bits remain.

    Args:
        sample: Gives record and image size.
        coarse_logits: float32 ``[K, h, w]`` covering the image; K may be 0.
        refined: Sharper logits, which the masks are cut from; None: from the coarse ones.
        attention: To be kept in the prediction.
        presence: float32 ``[K]``, probabilities; None: nothing is known of it.

    Returns:
        Masks at the image's original size, boxes xyxy in its pixels.

    Raises:
        RunError: Masks, boxes or scores hold NaN or infinities; names the sample.
    """
    size = sample.image_size
    maps = LogitMaps(coarse_logits, size) if refined is None else refined
    boxes, scores, packed = [], [], []
    for part in pieces(maps, size):
        logits = maps.enlarge(part)
        masks = above(logits, 0.0)
        boxes.append(masks_to_boxes(masks))
        scores.append(mask_scores(logits, masks))
        packed.append(PackedMasks.pack(masks))
    nothing = maps.enlarge(slice(0, 0))
    found = Prediction(
        record_id=sample.record_id,
        image_size=size,
        coarse_logits=coarse_logits,
        refined=refined,
        packed=PackedMasks.join(packed) if packed else PackedMasks.pack(nothing > 0),
        boxes_xyxy=torch.cat(boxes) if boxes else nothing.new_zeros(0, 4),
        scores=torch.cat(scores) if scores else nothing.new_zeros(0),
        attention=attention,
        presence=presence,
    )
    parts = [found.coarse_logits, found.mask_maps.maps, found.scores, found.boxes_xyxy]
    if presence is not None:
        parts.append(presence)
    require_finite("phrases' masks", [found.record_id], [part[None] for part in parts])
    return found
