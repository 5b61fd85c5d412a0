"""Results as ``supervision.Detections``, for its annotators, zones and trackers."""

from __future__ import annotations

from typing import Any

import numpy as np

from flmm_detseg.errors import MissingDependencyError
from flmm_detseg.inference.export.finite import checked
from flmm_detseg.inference.regions import WithRegions


def to_supervision(result: WithRegions) -> Any:
    """All regions as one ``supervision.Detections``; regions with an empty mask are left out.

    Args:
        result: What was found.

    Returns:
        ``xyxy`` float32 ``[N, 4]`` pixels, ``mask`` bool ``[N, H, W]`` (None where a region has no mask, because
        supervision knows all or none), ``confidence`` float32 ``[N]``, ``class_id`` int ``[N]`` (labels in the order of
        their first occurrence), ``data["class_name"]`` the labels.

    Raises:
        MissingDependencyError: supervision is not installed.
        RunError: A score or box is NaN or infinite.
    """
    try:
        import supervision
    except ImportError as error:
        raise MissingDependencyError(
            f"to_supervision() needs the package supervision ({error}): pip install 'flmm_detseg[supervision]'"
        ) from error
    regions = [region for region in checked(result.regions) if region.mask is None or region.mask.any()]
    if not regions:
        return supervision.Detections.empty()
    labels = list(dict.fromkeys(region.label for region in regions))
    masks = [region.mask for region in regions if region.mask is not None]
    return supervision.Detections(
        xyxy=np.array([region.box_xyxy for region in regions], dtype=np.float32),
        mask=np.stack(masks) if len(masks) == len(regions) else None,
        confidence=np.array([region.score for region in regions], dtype=np.float32),
        class_id=np.array([labels.index(region.label) for region in regions]),
        data={"class_name": np.array([region.label for region in regions])},
    )
