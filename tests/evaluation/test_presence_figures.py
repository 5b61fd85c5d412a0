from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from tiny import make_sample

from flmm_detseg.errors import DataError
from flmm_detseg.evaluation.presence import (
    auroc,
    best_threshold,
    expected_calibration_error,
    presence_figures,
    presence_records,
)
from flmm_detseg.structures import PackedMasks, Prediction


def record(number: int, absent: str | None, presence: float, score: float, answer: str | None = None) -> dict:
    return {
        "record_id": f"r{number}", "image_id": f"r{number}", "phrase": 0, "text": "x",
        "there": absent is None, "absent": absent, "presence": presence, "score": score, "answer": answer,
    }  # fmt: skip


RECORDS = [
    record(0, None, 0.9, 0.8, "yes"),
    record(1, None, 0.7, 0.7, "Yes! there is"),
    record(2, None, 0.3, 0.9, "no"),
    record(3, "kind", 0.1, 0.8, "no"),
    record(4, "kind", 0.6, 0.6, "a ring"),
    record(5, "relation", 0.2, 0.75, "yes"),
]


def test_the_calibration_error_of_a_hand_made_case():
    # 15 bins of width 1/15: 0.95 and 1.0 in the last (one of two there, mean 0.975), 0.1 in the second (none there),
    # 7/15 begins the eighth.
    probabilities = np.array([0.95, 1.0, 0.1, 7 / 15])
    there = np.array([True, False, False, True])
    expected = (2 * abs(0.975 - 0.5) + 0.1 + (1 - 7 / 15)) / 4
    assert expected_calibration_error(probabilities, there) == pytest.approx(expected)
    # One bin: the mean against the share.
    assert expected_calibration_error(probabilities, there, bins=1) == pytest.approx(
        abs(probabilities.mean() - 0.5)
    )


def test_auroc_counts_pairs():
    rng = np.random.default_rng(0)
    values, there = rng.integers(0, 6, 40) / 5, rng.random(40) < 0.5
    pairs = list(product(values[there], values[~there]))
    expected = sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)
    assert auroc(values, there) == pytest.approx(expected)


def test_the_best_threshold_is_the_best_of_all():
    rng = np.random.default_rng(1)
    values, there = rng.random(30).round(1), rng.random(30) < 0.5

    def balanced(limit: float) -> float:
        return (values[there] >= limit).mean() + (values[~there] < limit).mean()

    assert balanced(best_threshold(values, there)) == max(map(balanced, values))


def test_figures_of_a_hand_made_case():
    figures = presence_figures(RECORDS[::-1], threshold=0.6)
    expected = {
        "num_phrases": 6, "num_there": 3, "num_kind": 2, "num_relation": 1, "threshold": 0.6,
        "N_acc": 2 / 3, "N_acc_kind": 1 / 2, "N_acc_relation": 1.0, "T_acc": 2 / 3,
        "AUROC": 8 / 9,
        # 0.7 says yes to 0.8, 0.7, 0.9 and to absent 0.8, 0.75; no threshold does better.
        "mask_score_threshold": 0.7, "mask_score_N_acc": 1 / 3, "mask_score_T_acc": 1.0,
        "answer_N_acc": 1 / 3, "answer_N_acc_kind": 1 / 2, "answer_T_acc": 2 / 3, "answer_unread": 1 / 6,
        "always_present_N_acc": 0.0, "always_present_T_acc": 1.0,
    }  # fmt: skip
    assert {name: figures[name] for name in expected} == pytest.approx(expected)
    assert figures["T_acc_low"] <= figures["T_acc"] <= figures["T_acc_high"]


def test_phrases_of_an_image_are_no_independent_cases():
    """Copies of every phrase in its image tell nothing new; as other images they would."""
    copies = [{**item, "record_id": f"{item['record_id']}/{k}"} for item in RECORDS for k in range(5)]
    once, same = (presence_figures(records, threshold=0.6) for records in (RECORDS, copies))
    other = presence_figures([{**item, "image_id": item["record_id"]} for item in copies], threshold=0.6)
    for name in ("T_acc", "N_acc", "answer_N_acc"):
        bounds = [figures[f"{name}{end}"] for figures in (once, same) for end in ("_low", "_high")]
        assert bounds[:2] == pytest.approx(bounds[2:])
        assert other[f"{name}_high"] - other[f"{name}_low"] < bounds[1] - bounds[0]


def test_what_was_not_asked_or_is_not_there_has_no_figures():
    figures = presence_figures([record(0, None, 0.9, 0.8)], threshold=0.5)
    assert figures["T_acc"] == 1.0
    assert not [name for name in figures if name.startswith(("answer", "N_acc", "AUROC", "mask_score"))]


def prediction(sample, presence: torch.Tensor | None) -> Prediction:
    masks = torch.from_numpy(sample.masks)
    return Prediction(
        sample.record_id, sample.image_size, masks.float(), None, PackedMasks.pack(masks),
        torch.ones(len(masks), 4), torch.full((len(masks),), 0.8), presence=presence,
    )  # fmt: skip


def test_records_say_what_is_there_and_why_not():
    sample = make_sample(0, num_phrases=3)
    masks = sample.masks.copy()
    masks[1:] = False
    sample = replace(sample, masks=masks, meta={"absent": [None, "kind", None]}, image_id="scene")
    found = presence_records(sample, prediction(sample, torch.tensor([0.9, 0.2, 0.4])), ["yes", "no", "no"])
    assert [(fact["there"], fact["absent"], fact["presence"]) for fact in found] == [
        (True, None, 0.9), (False, "kind", 0.2), (False, "other", 0.4)
    ]  # fmt: skip
    assert {fact["image_id"] for fact in found} == {"scene"}
    with pytest.raises(DataError, match="presence"):
        presence_records(sample, prediction(sample, None))
    with pytest.raises(DataError, match="no masks"):
        presence_records(replace(sample, masks=None), prediction(sample, torch.ones(3)))
