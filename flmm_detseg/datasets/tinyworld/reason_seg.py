"""Reasoning-segmentation records in LISA's ReasonSeg format (labelme shapes beside each image)."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from flmm_detseg.datasets.tinyworld.relations import RELATION_MARGIN
from flmm_detseg.datasets.tinyworld.scene import Scene, SceneObject

_AREA_MARGIN = 1.25


def reason_seg_record(scene: Scene) -> dict[str, Any] | None:
    """A query that needs thinking about the whole scene, and the polygons of its answer.

    Args:
        scene: The scene.

    Returns:
        ``{"text": [...], "is_sentence": True, "shapes": [...]}`` with one ``target`` shape per outline of each answer
        object, or None when no query has a clear answer in this scene.
    """
    for queries, targets in _puzzles(scene):
        if targets:
            shapes = [
                {"label": "target", "labels": ["target"], "shape_type": "polygon", "points": points}
                for obj in targets
                for points in mask_polygons(obj.mask)
            ]
            height, width = scene.image.shape[:2]
            return {
                "text": queries,
                "is_sentence": True,
                "shapes": shapes,
                "imageHeight": height,
                "imageWidth": width,
            }
    return None


def _puzzles(scene: Scene) -> list[tuple[list[str], list[SceneObject]]]:
    objects = list(scene.objects)
    if len(objects) < 3:
        return []
    odd = [o for o in objects if all(o.kind != p.kind for p in objects if p is not o)]
    twins = len(objects) - len(odd) >= 2
    height, width = scene.image.shape[:2]
    by_area = sorted(objects, key=lambda o: -int(o.mask.sum()))
    largest = by_area[:1] if by_area[0].mask.sum() > _AREA_MARGIN * by_area[1].mask.sum() else []
    distance = {
        o.object_id: np.hypot(o.centre_xy[0] - width / 2, o.centre_xy[1] - height / 2) for o in objects
    }
    by_distance = sorted(objects, key=lambda o: distance[o.object_id])
    gap = distance[by_distance[1].object_id] - distance[by_distance[0].object_id]
    middle = by_distance[:1] if gap > RELATION_MARGIN else []
    puzzles = [
        (
            ["all objects but one have a partner of the same kind , which one is alone ?"],
            odd if len(odd) == 1 and twins else [],
        ),
        (["which object would you see first from far away because it covers most of the image ?"], largest),
        (
            [
                "if the image were folded twice , which object would lie nearest to the crossing of the folds ?"
            ],
            middle,
        ),
    ]
    start = scene.scene_id % len(puzzles)
    return puzzles[start:] + puzzles[:start]


def mask_polygons(mask: np.ndarray, with_specks: bool = False) -> list[list[list[float]]]:
    """Outlines of a mask as polygons ``[[x, y], ...]``; holes are cut in by a bridge, so even-odd filling is exact.

    Args:
        mask: bool ``[H, W]``.
        with_specks: Also parts of one or two pixels, which have no area: three points, some of them the same.

    Returns:
        One polygon per connected part.
    """
    contours, hierarchy = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    polygons = []
    for number, contour in enumerate(contours):
        if hierarchy[0][number][3] >= 0 or (len(contour) < 3 and not with_specks):
            continue
        points = contour[:, 0].tolist()
        points += points[-1:] * (3 - len(points))
        child = hierarchy[0][number][2]
        while child >= 0:
            hole = contours[child][:, 0].tolist()
            points = [*points, points[0], *hole, hole[0]]
            child = hierarchy[0][child][0]
        polygons.append([[float(x), float(y)] for x, y in points])
    return polygons
