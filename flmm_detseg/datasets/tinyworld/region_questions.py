"""Questions that point at an object instead of naming it: at their ``<region>``, a point, a box or a mask."""

from __future__ import annotations

from typing import Any

import numpy as np

from flmm_detseg.datasets.tinyworld.scene import Scene, SceneObject, scene_rng
from flmm_detseg.utils.rle import encode_rle

REGION_FORMS: tuple[str, ...] = ("point", "box", "mask")
REGION_QUESTIONS: dict[str, str] = {
    "kind": "what kind of object is <region> ?",
    "colour": "what colour is <region> ?",
}
_POINT = 4


def region_questions(scene: Scene, image_id: int, image: str, seed: int) -> list[dict[str, Any]]:
    """Two questions about each object of a scene, each pointing in a way of its own.

    Args:
        scene: The scene.
        image_id: Of its image.
        image: Its file, as the question file is to name it.
        seed: Seed of the world: which way, and which point, is drawn from it.

    Returns:
        Lines of a question file (:class:`~flmm_detseg.datasets.QuestionDataset`); ``category`` is ``"kind point"``,
        ``"colour mask"``, ...
    """
    rng = scene_rng(seed, scene.scene_id, scene.split, _POINT)
    lines = []
    for obj in scene.objects:
        for asked, text in REGION_QUESTIONS.items():
            form = str(rng.choice(REGION_FORMS))
            lines.append(
                {
                    "question_id": f"{image_id:012d}-{obj.object_id}-{asked}",
                    "image": image,
                    "text": text,
                    "answer": getattr(obj, asked),
                    "category": f"{asked} {form}",
                    "regions": [_region(obj, form, rng)],
                }
            )
    return lines


def without_regions(line: dict[str, Any]) -> dict[str, Any]:
    """The same question with the word "this" where it pointed: what can be answered without looking."""
    text = line["text"].replace("<region>", "this")
    return {**{key: value for key, value in line.items() if key != "regions"}, "text": text}


def _region(obj: SceneObject, form: str, rng: np.random.Generator) -> Any:
    """Any visible pixel's centre ``[x, y]``, the box ``[x0, y0, x1, y1]``, or the mask as COCO's run lengths."""
    if form == "point":
        rows, cols = np.nonzero(obj.mask)
        chosen = int(rng.integers(len(rows)))
        return [int(cols[chosen]) + 0.5, int(rows[chosen]) + 0.5]
    return list(obj.box_xyxy) if form == "box" else encode_rle(obj.mask)
