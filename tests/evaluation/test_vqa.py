from __future__ import annotations

import json
from itertools import combinations

import pytest

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.evaluation import answer_record, vqa_figures
from flmm_detseg.evaluation.vqa import (
    choose_metric,
    option_letter,
    pope_answer,
    score_answer,
    vqav2_accuracy,
    yes_or_no,
)
from flmm_detseg.evaluation.vqa_text import normalise_answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  The  Red\tCar.\n", "red car"),
        ("two", "2"),
        ("None", "0"),
        ("An apple and a pear", "apple and pear"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("its well", "its well"),  # words of their own
        ("shell", "shell"),
        ("isn't", "isn't"),
        ("1,000", "1000"),  # a comma between digits goes
        ("3.5", "3.5"),  # a decimal point stays
        ("u.s.a.", "usa"),
        ("yes!", "yes"),
        ("black/white", "black white"),  # between letters: a blank
        ("black / white", "black white"),
        ("t-shirt", "t shirt"),
        ("cat, dog", "cat dog"),
        ("cat,dog", "cat dog"),
        ('"stop"', "stop"),
        ("1,000-2,000 people", "10002000 people"),  # with such a comma every mark is deleted
        ("", ""),
        ("the", ""),
    ],
)
def test_normalisation(text, expected):
    assert normalise_answer(text) == expected
    assert normalise_answer(expected) == expected


@pytest.mark.parametrize(("matches", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_vqav2_accuracy_of_ten_people(matches, expected):
    people = ["Red"] * matches + [f"other {number}" for number in range(10 - matches)]
    assert vqav2_accuracy("the red.", people) == pytest.approx(expected, abs=1e-15)
    # The definition: every group of nine people in turn.
    groups = [min(1, group.count("Red") / 3) for group in combinations(people, 9)]
    assert vqav2_accuracy("red", people) == pytest.approx(sum(groups) / 10)


def test_exact_match_normalises_both_sides():
    assert score_answer("Two.", ["2"], "exact").score == 1
    assert score_answer("two stars", ["2"], "exact").score == 0
    assert score_answer("sofa", ["couch", "a sofa"], "exact").score == 1
    assert vqav2_accuracy("Two.", ["2"]) == 1


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", "B"),
        (" B\n", "B"),
        ("B. the sun", "B"),
        ("I think so. The answer is C.", "C"),
        ("The answer is A. The answer is B.", None),
        ("The answer is E.", None),  # four options
        ("Because it is warm", None),
        ("the sun", None),
        ("", None),
    ],
)
def test_scienceqa_options(answer, expected):
    assert option_letter(answer, 4) == expected
    assert score_answer(answer, ["B"], "scienceqa", 4).score == float(expected == "B")


@pytest.mark.parametrize(
    ("answer", "pope", "strict"),
    [
        ("Yes, there is.", "yes", "yes"),
        ("No, there is not.", "no", "no"),
        ("There is not a dog.", "no", None),
        ("There is a dog. No cat.", "yes", None),
        ("red", "yes", None),  # POPE takes all else for yes
        ("Nothing", "yes", None),
        ("", "yes", None),
    ],
)
def test_yes_and_no(answer, pope, strict):
    assert pope_answer(answer) == pope
    assert yes_or_no(answer) == strict


def test_metric_by_data():
    assert choose_metric(["red"] * 10) == "vqav2"
    assert choose_metric(["B"], ["one", "two"]) == "scienceqa"
    assert choose_metric(["Yes."]) == "yes_no"
    assert choose_metric(["no dogs"]) == "exact"


def records() -> list[dict]:
    rows = [
        ("1", "red", ["red"] * 3 + ["blue"] * 7, {}),
        ("2", "circle", ["circle"], {"kind": "kind"}),
        ("3", "star", ["circle"], {"kind": "kind"}),
        ("4", "yes", ["yes"], {}),
        ("5", "Yes, it is", ["no"], {}),
        ("6", "maybe", ["yes"], {}),
        ("7", "no", ["no"], {}),
        ("8", "A", ["A"], {"choices": ("x", "y")}),
        ("9", "who knows", ["B"], {"choices": ("x", "y")}),
    ]
    return [answer_record(name, "what ?", said, known, **options) for name, said, known, options in rows]


def test_figures_by_hand():
    figures = vqa_figures(records())
    assert figures["num_questions"] == 9
    assert figures["accuracy"] == pytest.approx((0.9 + 1 + 0 + 1 + 0 + 0 + 1 + 1 + 0) / 9)
    assert figures["vqav2_accuracy"] == pytest.approx(0.9)
    assert (figures["exact_num"], figures["exact_accuracy"], figures["accuracy/kind"]) == (2, 0.5, 0.5)
    assert (figures["scienceqa_accuracy"], figures["scienceqa_unparsed"]) == (0.5, 0.5)
    expected = {"accuracy": 2 / 4, "unparsed": 1 / 4, "precision": 1 / 2, "recall": 1 / 2, "F1": 1 / 2}
    assert {name: figures[f"yes_no_{name}"] for name in expected} == expected
    assert figures["yes_no_yes_ratio"] == 2 / 4


def test_pope_has_to_be_asked_for():
    rows = [("There is a dog", "yes"), ("no", "no"), ("It is not there", "yes"), ("Yes", "no"), ("ok", "yes")]
    asked = [answer_record(str(n), "?", said, [known], metric="pope") for n, (said, known) in enumerate(rows)]
    figures = vqa_figures(asked)
    assert figures["pope_accuracy"] == 3 / 5
    assert (figures["pope_precision"], figures["pope_recall"]) == (2 / 3, 2 / 3)
    assert figures["pope_F1"] == pytest.approx(2 / 3)
    assert figures["pope_yes_ratio"] == 3 / 5
    always_no = [answer_record("1", "?", "no", ["no"], metric="pope")]
    assert vqa_figures(always_no)["pope_F1"] == 0


def test_order_repetition_and_json_change_nothing():
    again = json.loads(json.dumps([*records()[::-1], records()[0]]))
    assert vqa_figures(again) == vqa_figures(records())
    assert vqa_figures([]) == {"num_questions": 0, "num_scored": 0}


def test_unusable_questions():
    with pytest.raises(ConfigError, match="`metric` is 'bleu'; allowed: vqav2"):
        score_answer("a", ["a"], "bleu")
    with pytest.raises(DataError, match="pope/7: reference 'red' is neither yes nor no"):
        answer_record("pope/7", "?", "yes", ["red"], metric="pope")
    with pytest.raises(DataError, match="q: reference 'E' is not the letter of one of 2 options"):
        answer_record("q", "?", "A", ["E"], choices=("x", "y"))
    with pytest.raises(DataError, match="q: a question has no reference answer"):
        answer_record("q", "?", "A", [], metric="exact")


def test_descriptions_are_not_scored():
    long = "there are two stars and a circle at the left side"
    record = answer_record("d", "describe", "two stars", [long])
    assert (record["metric"], record["score"]) == ("open", None)
    assert vqa_figures([record]) == {"num_questions": 1, "num_scored": 0}
    assert vqa_figures([record, *records()])["accuracy"] == vqa_figures(records())["accuracy"]


@pytest.mark.case("data/24_two_right_answers_score_a_sixth")
@pytest.mark.parametrize(
    ("references", "metric"),
    [
        (["car", "automobile"], "exact"),
        (["car"] * 3, "exact"),
        (["car", "automobile", "vehicle"], "exact"),
        (["car"] * 4, "vqav2"),
        (["car"] * 10, "vqav2"),
    ],
)
def test_a_right_answer_scores_1_whatever_the_number_of_references(references, metric):
    record = answer_record("q/1", "What is it?", "A car.", references)
    assert (record["metric"], record["score"]) == (metric, 1)


def test_two_who_agree_about_yes_are_one_yes():
    records = [
        answer_record(f"q/{k}", "?", text, ["yes", "Yes.", ""]) for k, text in enumerate(("yes", "no"))
    ]
    assert [record["metric"] for record in records] == ["yes_no"] * 2
    assert vqa_figures(records)["yes_no_recall"] == 0.5


@pytest.mark.case("data/24_two_right_answers_score_a_sixth")
def test_the_formula_of_voters_is_refused_for_two_or_three():
    for references in (["car", "automobile"], ["car"] * 3):
        with pytest.raises(DataError, match="q/1: metric 'vqav2' is for the answers of 4 people or more"):
            answer_record("q/1", "?", "car", references, metric="vqav2")
    assert score_answer("car", ["car"], "vqav2").score == 1


@pytest.mark.case("data/13_vqa_converter_edge_answers")
def test_an_empty_answer_counts_as_a_person_and_matches_nothing():
    people = ["red"] * 3 + ["blue"] * 6 + [""]
    assert vqav2_accuracy("red", people) == pytest.approx(0.9)
    assert vqav2_accuracy("", people) == vqav2_accuracy("the", people) == 0
    assert score_answer("", ["red", ""], "exact").score == 0
    with pytest.raises(DataError, match="every reference answer is empty"):
        score_answer("", [" ", ""], "exact")
