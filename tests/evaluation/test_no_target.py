from __future__ import annotations

import numpy as np
import pytest
from mask_answer_parts import masks_of, query, rows

from flmm_detseg.errors import ConfigError
from flmm_detseg.evaluation import mask_answer_record, reason_figures
from flmm_detseg.evaluation.no_target import judge, no_target_rule
from flmm_detseg.utils.choices import NO_TARGET_CONVENTIONS

EIGHT = rows(0, 1, 2, 3, 4, 5, 6, 7)
# Name, targets, predicted masks, ignored pixels.
CASES = {
    "good": ([EIGHT], [rows(0, 1, 2, 3, 4, 5)], None),
    "missed": ([EIGHT], [], None),
    "silent": ([], [], None),
    "alarm": ([], [rows(0, 1, 2, 3, 4, 5)], None),
    "speck": ([], [rows(0, 1)], None),
    "token without a pixel": ([], [rows()], None),
    "annotated without a pixel": ([EIGHT], [], EIGHT),
    "small": ([rows(0, 1, 2)], [rows(0, 1, 2)], None),
}


def record(name: str) -> dict:
    targets, masks, ignored = CASES[name]
    sample = query(name, targets, **({} if ignored is None else {"ignore": ignored}))
    return mask_answer_record(sample, "it is [SEG] " * len(masks), masks_of(name, masks))


# By hand, in the order of CASES: what it adds to gIoU, to cIoU's two sums, no target, says none.
BY_HAND = {
    "lisa": [
        (0.75, 60, 80, 0, 0), (0, 0, 80, 0, 1), (1, 0, 0, 1, 1), (0, 0, 60, 1, 0),
        (0, 0, 20, 1, 0), (1, 0, 0, 1, 1), (1, 0, 0, 1, 1), (1, 30, 30, 0, 0),
    ],
    "gsva": [
        (0.75, 60, 80, 0, 0), (0, 0, 80, 0, 1), (1, 0, 0, 1, 1), (0, 0, 60, 1, 0),
        (0, 0, 20, 1, 0), (0, 0, 0, 1, 0), (1, 0, 0, 1, 1), (1, 30, 30, 0, 0),
    ],
    "rela": [
        (0.75, 60, 80, 0, 0), (0, 0, 80, 0, 1), (1, 0, 0, 1, 1), (0, 0, 60, 1, 0),
        (1, 0, 0, 1, 1), (1, 0, 0, 1, 1), (0, 0, 0, 0, 1), (0, 0, 30, 0, 1),
    ],
    "vision_reasoner": [
        (0.75, 60, 80, 0, 0), (0, 0, 80, 0, 1), (1, 0, 0, 1, 1), (0, 0, 60, 1, 0),
        (0, 0, 20, 1, 0), (1, 0, 0, 1, 1), (0, 0, 0, 0, 1), (1, 30, 30, 0, 0),
    ],
}  # fmt: skip


@pytest.mark.parametrize("convention", NO_TARGET_CONVENTIONS)
def test_every_convention_judges_as_by_hand(convention):
    judged = [tuple(judge(record(name), no_target_rule(convention))) for name in CASES]
    assert judged == BY_HAND[convention]


@pytest.mark.parametrize(
    ("convention", "expected"),
    [
        ("lisa", {"gIoU": 4.75 / 8, "cIoU": 90 / 270, "N_acc": 3 / 5, "T_acc": 2 / 3}),
        ("gsva", {"gIoU": 3.75 / 8, "cIoU": 90 / 270, "N_acc": 2 / 5, "T_acc": 2 / 3}),
        ("rela", {"gIoU": 3.75 / 8, "cIoU": 60 / 250, "N_acc": 3 / 4, "T_acc": 1 / 4}),
        ("vision_reasoner", {"gIoU": 3.75 / 8, "cIoU": 90 / 270, "N_acc": 2 / 4, "T_acc": 2 / 4}),
    ],
)  # fmt: skip
def test_figures_of_every_convention_by_hand(convention, expected):
    figures = reason_figures([record(name) for name in CASES], convention=convention)
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value, abs=1e-12), name


def lisa(target, mask, flag, tokens):
    """As its validation does: pixel counts of the class "object", 1 where the union is empty."""
    intersection, union = (target & mask).sum(), (target | mask).sum()
    return (
        (1.0 if union == 0 else intersection / union),
        intersection,
        union,
        not target.any(),
        not mask.any(),
    )


def gsva(target, mask, flag, tokens):
    rejected = tokens == 0
    if not target.any():
        return (1.0, 0, 0, True, True) if rejected else (0.0, 0, mask.sum(), True, False)
    iou = (target & mask).sum() / (target | mask).sum()
    return iou, (target & mask).sum(), (target | mask).sum(), False, rejected


def rela(target, mask, flag, tokens):
    mask = mask if mask.sum() >= 50 else np.zeros_like(mask)
    if flag:
        return (0.0, 0, mask.sum(), True, False) if mask.any() else (1.0, 0, 0, True, True)
    union = (target | mask).sum()
    return (
        ((target & mask).sum() / union if union else 0.0),
        (target & mask).sum(),
        union,
        False,
        not mask.any(),
    )


def vision_reasoner(target, mask, flag, tokens):
    intersection, union = (target & mask).sum(), (target | mask).sum()
    if flag and union == 0:
        return 1.0, 0, 0, True, True
    return (intersection / union if union else 0.0), intersection, union, flag, not mask.any()


@pytest.mark.parametrize("independent", [lisa, gsva, rela, vision_reasoner])
def test_equals_an_independent_computation_on_random_answers(independent):
    rng = np.random.default_rng(3)
    expected, records = [], []
    for number in range(120):
        size = (int(rng.integers(8, 14)), int(rng.integers(8, 14)))
        ignored = rng.random(size) < rng.choice([0.0, 0.3, 1.0], p=[0.6, 0.3, 0.1])

        def some(count: int) -> list[np.ndarray]:
            return [rng.random(size) < rng.choice([0.0, 0.2, 0.7]) for _ in range(count)]  # noqa: B023

        targets, masks = some(int(rng.integers(0, 3))), some(int(rng.integers(0, 3)))
        sample = query(f"{number:03d}", targets, size, ignore=ignored)
        prediction = masks_of(sample.record_id, masks, size)
        records.append(mask_answer_record(sample, "[SEG]" * len(masks), prediction))
        blank = [np.zeros(size, bool)]
        target, mask = (np.any(blank + some_masks, axis=0) & ~ignored for some_masks in (targets, masks))
        expected.append(independent(target, mask, not targets, len(masks)))
    ious, intersections, unions, no_target, says_none = np.array(expected, dtype=float).T
    figures = reason_figures(records[::-1], convention=independent.__name__)
    assert figures["gIoU"] == pytest.approx(ious.mean(), abs=1e-12)
    assert figures["cIoU"] == pytest.approx(intersections.sum() / unions.sum(), abs=1e-12)
    assert figures["N_acc"] == pytest.approx(says_none[no_target == 1].mean(), abs=1e-12)
    assert figures["T_acc"] == pytest.approx(1 - says_none[no_target == 0].mean(), abs=1e-12)
    assert 0 < figures["N_acc"] < 1
    assert 0 < figures["T_acc"] < 1


def test_an_unknown_convention_is_named_with_those_there_are():
    with pytest.raises(ConfigError, match="'gres'; allowed: lisa, gsva, rela, vision_reasoner"):
        no_target_rule("gres")
