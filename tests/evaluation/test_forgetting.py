from __future__ import annotations

import json

import numpy as np
import pytest

from flmm_detseg.errors import DataError, RunError
from flmm_detseg.evaluation import answer_record, forgetting_figures, forgetting_record
from flmm_detseg.evaluation.bootstrap import bootstrap_interval
from flmm_detseg.evaluation.forgetting import summarise, unwanted_kinds


def pair(name: str, base: str, adapted: str, known: str, kl: float | None = None, **options) -> dict:
    sides = [answer_record(name, "what ?", said, [known], **options) for said in (base, adapted)]
    return forgetting_record(*sides, kl)


def test_figures_by_hand():
    records = [
        pair("a", "red", "red", "red", 0.0),
        pair("b", "red", "blue <SEG>", "red", 0.5),
        pair("c", "two", "2", "two", 0.1),
        pair("d", "cat [1, 2, 3, 4]", "Detections: cat [10, 20, 30, 40]", "cat", 0.2),
    ]
    figures = forgetting_figures(records)
    assert figures["num_questions"] == 4
    assert (figures["base_accuracy"], figures["adapted_accuracy"]) == (3 / 4, 2 / 4)
    assert figures["forgetting_points"] == 25
    assert figures["identical"] == 1 / 4
    assert (figures["unwanted"], figures["base_unwanted"]) == (2 / 4, 1 / 4)
    assert figures["unwanted_task_token"] == figures["unwanted_section"] == figures["unwanted_box"] == 1 / 4
    assert figures["kl_mean"] == pytest.approx(0.2)
    # Four draws of one loss in four: never below 0; 4 losses in 4 draws have probability 0.4 %.
    assert (figures["forgetting_low"], figures["forgetting_high"]) == (0, 75)
    again = json.loads(json.dumps([*records[::-1], records[1]]))
    assert forgetting_figures(again) == figures


def test_untouched_model_forgets_nothing():
    figures = forgetting_figures([pair(str(n), "red", "red", "red") for n in range(20)])
    assert (figures["forgetting_points"], figures["forgetting_low"], figures["forgetting_high"]) == (0, 0, 0)
    assert (figures["identical"], figures["unwanted"]) == (1, 0)
    assert "kl_mean" not in figures
    assert forgetting_figures([]) == {"num_questions": 0}


def test_interval_agrees_with_resampling_and_theory():
    rng = np.random.default_rng(1)
    values = rng.choice([-1.0, 0.0, 0.3, 1.0], p=[0.05, 0.75, 0.1, 0.1], size=800)
    low, high = bootstrap_interval(values)
    means = np.array([rng.choice(values, size=len(values)).mean() for _ in range(4000)])
    assert [low, high] == pytest.approx(np.quantile(means, [0.025, 0.975]).tolist(), abs=3e-3)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert [low, high] == pytest.approx([values.mean() - half, values.mean() + half], abs=2e-3)
    assert bootstrap_interval(rng.permutation(values)) == (low, high)
    assert bootstrap_interval(values, seed=1) != (low, high)
    inner = bootstrap_interval(values, level=0.5)
    assert low < inner[0] < inner[1] < high


def test_pairing_narrows_the_interval():
    """Equal answers add no uncertainty, however hard the questions are."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2, 400).astype(float)
    adapted = base.copy()
    adapted[:4] = 1 - adapted[:4]
    low, high = bootstrap_interval(base - adapted)
    assert high - low < 0.025 < 2 * 1.96 * np.sqrt(2 * base.var() / 400)


@pytest.mark.parametrize(
    ("answer", "kinds"),
    [
        ("a red car", []),
        ("it is <SEG>", ["task_token"]),
        ("<det> car", ["task_token"]),
        ("<loc_12>", ["task_token"]),
        ("Segmentations: car", ["section"]),
        ("car [12, 30, 500, 999]", ["box"]),
        ("(0.12, 0.30, 0.5, 0.9)", ["box"]),
        ("150 250 470 560", ["box"]),
        ("call 555 1234 5678", []),
        ("[1, 2, 3]", []),
        ("1998 1999 2000 2001", []),
        ("if a < b and c > d", []),
        (
            "Answer: car\nDetections: car [1, 2, 3, 4]\nSegmentations: car <SEG>",
            ["task_token", "section", "box"],
        ),
    ],
)
def test_unwanted_text(answer, kinds):
    assert unwanted_kinds(answer, ["a car"]) == kinds


def test_a_box_that_was_asked_for_is_wanted():
    assert unwanted_kinds("150 250 470 560", ["150 250 470 570"]) == []
    assert unwanted_kinds("150 250 470 560 <SEG>", ["150 250 470 570"]) == ["task_token"]


def test_summary_over_sets():
    figures = {name: {"forgetting_points": points} for name, points in (("a", 1.0), ("b", -0.5), ("c", 2.5))}
    assert summarise(figures) == {"mean_forgetting_points": 1.0, "worst_forgetting_points": 2.5}
    assert summarise({"a": {"num_questions": 0}}) == {}


def test_unusable_pairs():
    one, other = (answer_record(name, "what ?", "red", ["red"]) for name in ("a", "b"))
    with pytest.raises(DataError, match="a: base and adapted answers differ in `record_id`"):
        forgetting_record(one, other)
    with pytest.raises(RunError, match="a: the KL divergence is nan"):
        forgetting_record(one, one, float("nan"))


def test_descriptions_count_for_all_but_accuracy():
    long = "there are two stars and a circle at the left side"
    records = [pair("a", "red", "blue", "red", 0.5), pair("b", long, long, long, 0.1)]
    figures = forgetting_figures(records)
    assert (figures["num_questions"], figures["num_scored"]) == (2, 1)
    assert (figures["forgetting_points"], figures["identical"], figures["kl_mean"]) == (100, 0.5, 0.3)
    assert "forgetting_points" not in forgetting_figures(records[1:])


@pytest.mark.case("security/parser")
def test_a_long_run_of_blanks_is_read_once():
    """Time grew with the square of it: 100 000 blanks would take minutes."""
    assert unwanted_kinds("[1" + " " * 100_000 + "x", []) == []
    assert unwanted_kinds("[1 ,\n 2, 3" + " " * 100_000 + "4]", []) == ["box"]
