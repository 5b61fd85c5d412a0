"""One-to-one matching of an answer's masks with the targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment


def instance_ious(record: Mapping[str, Any]) -> np.ndarray:
    """IoU of every mask of an answer with every target.

    Args:
        record: Of :func:`~flmm_detseg.evaluation.mask_answer_records.mask_answer_record`.

    Returns:
        float64 ``[P, T]``; 0 where both have no pixel.
    """
    areas, targets = np.asarray(record["areas"]), np.asarray(record["target_areas"])
    shape = (len(areas), len(targets))
    overlaps = np.asarray(record["intersections"], dtype=np.float64).reshape(shape)
    unions = areas.reshape(-1, 1) + targets.reshape(1, -1) - overlaps
    return np.divide(overlaps, unions, out=np.zeros(shape), where=unions > 0)


def num_matches(allowed: np.ndarray) -> int:
    """Most pairs that can be formed when each mask and each target is used once at most.

    Args:
        allowed: bool ``[P, T]``, which pairs may be formed.

    Returns:
        Their number.
    """
    rows, columns = linear_sum_assignment(allowed, maximize=True)
    return int(allowed[rows, columns].sum())


def matched_iou(ious: np.ndarray) -> float:
    """Largest sum of IoUs over pairs in which each mask and each target is used once at most.

    Args:
        ious: float ``[P, T]``.

    Returns:
        The sum; 0 without a pair.
    """
    rows, columns = linear_sum_assignment(ious, maximize=True)
    return float(ious[rows, columns].sum())
