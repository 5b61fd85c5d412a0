from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from mask_answer_parts import masks_of, query, rows
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from flmm_detseg.evaluation import gcg_figures, mask_answer_record
from flmm_detseg.evaluation.gcg import phrase_similarity

SIZE = (24, 30)


def captions(num: int = 30) -> list[tuple[list[np.ndarray], list[np.ndarray], list[float]]]:
    """Targets, masks and scores by image: squares, and squares that were moved."""
    rng = np.random.default_rng(4)

    def square(y: int, x: int) -> np.ndarray:
        mask = np.zeros(SIZE, dtype=bool)
        mask[y : y + 8, x : x + 9] = True
        return mask

    found = []
    for _ in range(num):
        places = rng.integers(0, 15, (int(rng.integers(0, 5)), 2))
        moved = [(y + int(rng.integers(-2, 4)), x + int(rng.integers(-1, 4))) for y, x in places.tolist()]
        moved = [(max(0, y), max(0, x)) for y, x in moved if rng.random() < 0.9]
        moved += [(int(y), int(x)) for y, x in rng.integers(0, 15, (int(rng.integers(0, 3)), 2))]
        scores = rng.choice([0.25, 0.5, 0.75, 0.9], len(moved)).tolist()  # ties
        found.append(
            ([square(*place) for place in places.tolist()], [square(*place) for place in moved], scores)
        )
    return found


def records_of(images) -> list[dict]:
    return [
        mask_answer_record(
            query(f"{number:03d}", targets, SIZE),
            "[SEG]" * len(masks),
            masks_of(f"{number:03d}", masks, SIZE, scores),
        )
        for number, (targets, masks, scores) in enumerate(images)
    ]


@pytest.mark.parametrize("ranked", [True, False])
def test_ap50_is_cocos(ranked):
    images = captions()
    annotations, results = [], []

    def encoded(mask: np.ndarray) -> dict:
        return coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))

    for number, (targets, masks, scores) in enumerate(images):
        for mask in targets:
            entry = {"segmentation": encoded(mask), "area": int(mask.sum()), "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": 1, **entry})
        for mask, score in zip(masks, scores):
            # GLaMM gives every mask the same score.
            entry = {"segmentation": encoded(mask), "score": score if ranked else 1.0}
            results.append({"image_id": number, "category_id": 1, **entry})
    truth = COCO()
    with contextlib.redirect_stdout(io.StringIO()):
        truth.dataset = {
            "images": [{"id": number, "height": SIZE[0], "width": SIZE[1]} for number in range(len(images))],
            "annotations": annotations,
            "categories": [{"id": 1, "name": "thing"}],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    figures = gcg_figures(records_of(images)[::-1])
    got = figures["AP50" if ranked else "AP50_unranked"]
    assert got == pytest.approx(evaluation.stats[1], abs=1e-9)
    assert 0.2 < got < 0.9
    assert figures["AP50"] != figures["AP50_unranked"]


def test_miou_takes_the_best_pair_again_and_again():
    images = captions()
    means = []
    for targets, masks, _ in images:
        pairs = sorted(
            ((p & t).sum() / (p | t).sum(), i, j) for i, p in enumerate(masks) for j, t in enumerate(targets)
        )
        ious, rows_used, columns_used = [], set(), set()
        for iou, row, column in reversed(pairs):
            if iou > 0 and row not in rows_used and column not in columns_used:
                ious.append(iou)
                rows_used.add(row)
                columns_used.add(column)
        if targets:
            means.append(np.mean(ious) if ious else 0.0)
    assert gcg_figures(records_of(images))["mIoU"] == pytest.approx(np.mean(means), abs=1e-12)


def test_a_phrase_is_recalled_with_its_mask():
    targets = [rows(0, 1, 2), rows(4, 5, 6), rows(8, 9)]
    names = ("the red ring", "a small blue star", "a cup")
    masks = [rows(0, 1, 2), rows(4, 5, 6), rows(9)]
    # Alike and in place; in place, but words of another; alike at IoU 0.5 exactly.
    said = ("A red ring", "the red ring", "cup")
    record = mask_answer_record(query("a", targets, names=names), "[SEG]" * 3, masks_of("a", masks), said)
    assert gcg_figures([record])["phrase_recall"] == pytest.approx(2 / 3)
    unnamed = mask_answer_record(query("b", targets, names=names), "[SEG]" * 3, masks_of("b", targets))
    assert gcg_figures([record, unnamed])["phrase_recall"] == pytest.approx(2 / 6)
    assert "phrase_recall" not in gcg_figures([{**record, "target_names": []}])


def test_similarity_of_phrases():
    assert phrase_similarity("The red ring", "a RED ring .") == 1
    assert phrase_similarity("the red ring", "the small red star") == pytest.approx(2 / 5)
    assert phrase_similarity("ring", "star") == 0
    assert phrase_similarity("the", "a") == 0, "articles are no words"


def test_nothing_to_count():
    empty = mask_answer_record(query("a", []), "none", masks_of("a", []))
    assert gcg_figures([empty]) == {"num_records": 1, "num_targets": 0, "num_masks": 0}
    missed = mask_answer_record(query("b", [rows(0)]), "none", masks_of("b", []))
    assert gcg_figures([missed])["AP50"] == gcg_figures([missed])["AP50_unranked"] == 0
    assert gcg_figures([missed])["mIoU"] == 0
