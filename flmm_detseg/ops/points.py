"""Sets of points in the plane: those that lie far from one another, and those that lie next to some place."""

from __future__ import annotations

import torch
from torch import Tensor


def farthest_points(points: Tensor, count: int) -> Tensor:
    """Chooses points of each set: the first one, then always the one that is farthest from all that are chosen.

    Args:
        points: ``[M, N, 2]``; float32 at least: in bfloat16 neighbours of a fine set fall together.
        count: How many, 1 to N. A set with fewer different points gives some of them several times.

    Returns:
        int64 ``[M, count]``, places in their set, in the order of choice.

    Source: Eldar et al., The Farthest Point Strategy for Progressive Image Sampling, 1997.
    """
    every = torch.arange(len(points), device=points.device)
    chosen = torch.zeros(len(points), count, dtype=torch.int64, device=points.device)
    away = points.new_full(points.shape[:2], torch.inf)
    for step in range(1, count):
        latest = points[every, chosen[:, step - 1], None]
        away = torch.minimum(away, (points - latest).square().sum(-1))
        chosen[:, step] = away.argmax(1)
    return chosen


def nearest_points(places: Tensor, points: Tensor, count: int) -> Tensor:
    """Finds the points of each set that lie next to each of some places.

    Args:
        places: ``[M, S, 2]``.
        points: ``[M, N, 2]``, float32 at least.
        count: How many of them, 1 to N.

    Returns:
        int64 ``[M, S, count]``, the nearest first.
    """
    # Not torch.cdist, whose matrix product loses what distinguishes points of a small region.
    away = (places[:, :, None] - points[:, None]).square().sum(-1)
    return away.topk(count, largest=False).indices
