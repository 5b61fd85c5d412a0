import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from language_answers import NASTY

from flmm_detseg.language import BoxItem, JointAnswer, MaskItem, parse_answer, serialise
from flmm_detseg.language.parse import MAX_CHARS, MAX_PROBLEMS
from flmm_detseg.language.wording import MAX_ITEMS

TRIANGLE = ((1, 2), (3, 4), (5, 6))


def box(label, *values):
    return BoxItem(label, values)


def detections(text):
    return parse_answer("Detections: " + text).answer.detections


def counts(text):
    report = parse_answer(text).report
    return report.num_parsed, report.num_bad, report.num_repaired


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("car 1, 2, 3, 4]; dog [5, 6, 7, 8]", (box("car", 1, 2, 3, 4), box("dog", 5, 6, 7, 8))),
        ("car [1, 2, 3, 4; dog [5, 6, 7, 8]", (box("car", 1, 2, 3, 4), box("dog", 5, 6, 7, 8))),
        ("car [1, 2, 3, 4 dog [5, 6, 7, 8]", (box("car", 1, 2, 3, 4), box("dog", 5, 6, 7, 8))),
        ("car 1, 2, 3, 4; dog 5, 6, 7, 8", (box("car", 1, 2, 3, 4), box("dog", 5, 6, 7, 8))),
        ("car [1 2 3 4] dog (5,6,7,8)", (box("car", 1, 2, 3, 4), box("dog", 5, 6, 7, 8))),
        ("[car, (1,2,3,4)], [dog, (5,6,7,8)]", (box("car", 1, 2, 3, 4), box("dog", 5, 6, 7, 8))),
        ("- car: [1,2,3,4]\n- dog: [5,6,7,8]", (box("car", 1, 2, 3, 4), box("dog", 5, 6, 7, 8))),
        ("cars [1,2,3,4], [5,6,7,8]", (box("cars", 1, 2, 3, 4), box("cars", 5, 6, 7, 8))),
        ("cars [[1,2,3,4],[5,6,7,8]]", (box("cars", 1, 2, 3, 4), box("cars", 5, 6, 7, 8))),
        ("car [1,\n2, 3,\n4]", (box("car", 1, 2, 3, 4),)),
        ("route 66 [1,2,3,4]; 7 [5,6,7,8]", (box("route 66", 1, 2, 3, 4), box("7", 5, 6, 7, 8))),
        ("set 1, 2, 3, 4 [5,6,7,8]", (box("set 1, 2, 3, 4", 5, 6, 7, 8),)),
    ],
)
def test_brackets_and_separators_may_be_missing_or_others(text, expected):
    assert detections(text) == expected
    assert counts("Detections: " + text)[:2] == (len(expected), 0)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ("30, 40, 1, 2", (1, 2, 30, 40)),
        ("30, 2, 1, 40", (1, 2, 30, 40)),
        ("-5, 2, 1200, 999999999999999999999999", (0, 2, 999, 999)),
        ("0.1, 0.25, 0.5, 1", (100, 250, 500, 999)),
        ("-0.1, .25, 0.5, 1.", (0, 250, 500, 999)),
        ("10.4, 20.5, 30.6, 40.0", (10, 21, 31, 40)),
        ("0.5, 2, 30, 40", (1, 2, 30, 40)),
        ("9" * 5000 + ", 1, 2, 3", (2, 1, 999, 3)),
    ],
)
def test_values_are_repaired_and_that_is_counted(values, expected):
    text = f"Detections: car [{values}]"
    assert parse_answer(text).answer.detections == (box("car", *expected),)
    assert counts(text) == (1, 0, 1)


def test_integers_zero_and_one_are_not_shares():
    assert detections("car [0, 0, 1, 1]") == (box("car", 0, 0, 1, 1),)
    assert counts("Detections: car [0, 0, 1, 1]") == (1, 0, 0)


@pytest.mark.parametrize(
    ("damaged", "kind"),
    [
        ("dog [5, 6, 7]", "wrong_number_of_values"),
        ("dog [5, 6, 7, 8, 9]", "wrong_number_of_values"),
        ("dog [5, 6x, 7, 8]", "broken_item"),
        ("dog [5, ٣, 7, 8]", "broken_item"),
        ("dog [5, 1e9, 7, 8]", "broken_item"),
        ("dog", "no_coordinates"),
        ("dog [", "no_coordinates"),
        ("[5, 6, 7, 8]", "no_label"),
        ("dog <SEG>", "seg_among_boxes"),
    ],
)
def test_one_damaged_item_costs_one_item(damaged, kind):
    parsed = parse_answer(f"Detections: car [1, 2, 3, 4]; {damaged}; cat [9, 9, 99, 99]")
    assert parsed.answer.detections == (box("car", 1, 2, 3, 4), box("cat", 9, 9, 99, 99))
    assert (parsed.report.num_parsed, parsed.report.num_bad) == (2, 1)
    assert [problem.kind for problem in parsed.report.problems] == [kind]


def test_a_broken_item_without_its_end_does_not_take_the_next_one_along():
    parsed = parse_answer("Detections: car [1, 2 dog [5, 6, 7, 8]; cat [3, 3x, 4 cow [1, 2, 3, 4]")
    assert parsed.answer.detections == (box("dog", 5, 6, 7, 8), box("cow", 1, 2, 3, 4))
    assert parsed.report.num_bad == 2


@pytest.mark.parametrize("tail", ["dog [5, 6, 7, 8", "dog [5, 6, 7,", "dog [5", "dog [", "dog", "do"])
def test_a_cut_off_tail_is_lost_alone(tail):
    parsed = parse_answer(f"Answer: yes\nDetections: car [1, 2, 3, 4]; {tail}")
    assert parsed.answer == JointAnswer("yes", (box("car", 1, 2, 3, 4),))
    assert (parsed.report.num_parsed, parsed.report.num_bad) == (1, 1)


def test_an_open_bracket_at_the_end_of_a_section_is_no_cut():
    parsed = parse_answer("Detections: car [1, 2, 3, 4\nSegmentations: none")
    assert parsed.answer == JointAnswer(None, (box("car", 1, 2, 3, 4),), ())
    assert parsed.report.num_repaired == 1


def test_repeated_boxes_are_dropped():
    text = "; ".join(
        ["car [100, 100, 900, 900]", "Car [100, 100, 900, 905]", "dog [100, 100, 900, 900]"] * 40
    )
    parsed = parse_answer("Detections: " + text)
    assert parsed.answer.detections == (box("car", 100, 100, 900, 900), box("dog", 100, 100, 900, 900))
    assert (parsed.report.num_parsed, parsed.report.num_bad, parsed.report.num_repeated) == (2, 0, 118)


def test_iou_of_exactly_the_limit_stays():
    assert len(detections("a [0, 0, 100, 100]; a [0, 0, 100, 95]; a [0, 0, 100, 94]")) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("answer: yes\nDETECTIONS: car [1,2,3,4]", JointAnswer("yes", (box("car", 1, 2, 3, 4),))),
        ("Answer : yes Detections : car [ 1 , 2 , 3 , 4 ]", JointAnswer("yes", (box("car", 1, 2, 3, 4),))),
        ("Answer: yes；Detections：none；Segmentations：none", JointAnswer("yes；", (), ())),
        ("**Answer:** yes\n**Detections**: car [1,2,3,4]", JointAnswer("yes", (box("car", 1, 2, 3, 4),))),
        ("Yes\n- Answer: B\n# Detections: none", JointAnswer("B", ())),
        ("Detection: car [1,2,3,4] Answer: yes", JointAnswer("yes", (box("car", 1, 2, 3, 4),))),
        ("Sure.\nDetections: none", JointAnswer("Sure.", ())),
        ("Sure.\nAnswer: B\nDetections: None.", JointAnswer("B", ())),
        (
            "Detections: a [1,2,3,4]\nDetections: b [1,2,3,4]",
            JointAnswer(None, (box("a", 1, 2, 3, 4), box("b", 1, 2, 3, 4))),
        ),
        ("Answer: one\nDetections: none\nAnswer: two", JointAnswer("one", ())),
        ("Answer: none", JointAnswer("none")),
        ("Answer:\nDetections:", JointAnswer(None, ())),
        ("Answer: line 1\nline 2\nAnswer: 3", JointAnswer("line 1\nline 2\nAnswer: 3")),
    ],
)
def test_sections(text, expected):
    assert parse_answer(text).answer == expected


@pytest.mark.parametrize(
    "text",
    [
        "Yes.",
        "The detections: many.",
        "Because it rains. Answer: B",
        "car [1, 2, 3, 4]",
        "Report of detections: 3\nof 4",
        "a; b",
    ],
)
def test_text_without_tags_is_the_answer(text):
    parsed = parse_answer(f"  {text}\n")
    assert parsed.answer == JointAnswer(text)
    assert parsed.report.problems == ()


def test_nothing():
    assert parse_answer("").answer == parse_answer(" \n").answer == JointAnswer()


def test_masks():
    parsed = parse_answer(
        "Segmentations: car <SEG>; dog [1,2,3,4,5,6] [6,5,4,3,2,1]; a tree <SEG> <SEG>; sky<SEG>"
    )
    assert parsed.answer.segmentations == (
        MaskItem("car", seg_index=0),
        MaskItem("dog", (TRIANGLE, ((6, 5), (4, 3), (2, 1)))),
        MaskItem("a tree", seg_index=1),
        MaskItem("a tree", seg_index=2),
        MaskItem("sky", seg_index=3),
    )
    assert parsed.report.num_bad == 0


def test_seg_indices_count_over_the_whole_text():
    text = "Answer: the <SEG> car\nDetections: cat <SEG>\nSegmentations: <SEG>; car <SEG>; car <seg>"
    parsed = parse_answer(text)
    assert parsed.answer.segmentations == (MaskItem("car", seg_index=3),)
    assert parsed.report.num_bad == 3  # among boxes, without label, and lower case, which is no token
    (start, end) = parsed.segmentation_spans[0].values[0]
    assert text[start:end] == "<SEG>"
    assert text[:start].count("<SEG>") == 3


@pytest.mark.parametrize(
    ("damaged", "num_bad"),
    [
        ("dog [1,2,3,4,5,6] [1,2x,3,4,5,6]", 1),
        ("dog [1,2,3,4,5,6] [1,2,3,4,5]", 1),
        ("dog [1,2,3,4] [1,2,3,4,5,6]", 1),
        ("dog [1,2,3,4,5,6] [1,2", 1),
    ],
)
def test_a_mask_keeps_its_complete_parts(damaged, num_bad):
    parsed = parse_answer(f"Segmentations: car <SEG>; {damaged}")
    assert parsed.answer.segmentations == (MaskItem("car", seg_index=0), MaskItem("dog", (TRIANGLE,)))
    assert (parsed.report.num_bad, parsed.report.num_repaired) == (num_bad, 1)


def test_spans_say_where_items_and_numbers_stand():
    text = "Detections: red car [12, 0.5, 380,912]; [1,2]; dog 1, 2, 3, 4"
    parsed = parse_answer(text)
    assert [text[span.start : span.end] for span in parsed.detection_spans] == [
        "red car [12, 0.5, 380,912]",
        "dog 1, 2, 3, 4",
    ]
    assert [text[a:b] for a, b in parsed.detection_spans[0].values] == ["12", "0.5", "380", "912"]
    masks = "Segmentations: dog [1,2,3,4,5,6] [7,8,9,1,2,3]; a<SEG>"
    spans = parse_answer(masks).segmentation_spans
    assert [masks[span.start : span.end] for span in spans] == ["dog [1,2,3,4,5,6] [7,8,9,1,2,3]", "a<SEG>"]
    assert len(spans[0].values) == 12


def test_items_and_problems_are_bounded():
    boxes = "; ".join(f"car {i} [1, 2, 3, 4]" for i in range(MAX_ITEMS + 200))
    report = parse_answer("Detections: " + boxes).report
    assert (report.num_parsed, report.num_bad) == (MAX_ITEMS, 200)
    assert len(report.problems) == MAX_PROBLEMS
    long = parse_answer("Answer: yes\n" + " " * MAX_CHARS + "Detections: car [1,2,3,4]")
    assert long.answer == JointAnswer("yes")
    assert long.report.problems[0].kind == "too_long"


@pytest.mark.parametrize(
    "unit",
    [
        "[",
        "1,",
        " ",
        "\n",
        "Detections:",
        "x Detections: ",
        "Answer:",
        "<SEG>",
        "a <SEG>",
        "a <SEG",
        "9",
        "a [1,2,3,4]",
    ]
    + ["a [1,2,3,4", "a 1, 2, 3, 4; ", "a [1,2,3,4,5,6]", "- ", "D", "**", "a;", "none ", "0.", "[1x "],
)
@pytest.mark.parametrize("tag", ["", "Detections: ", "Segmentations: a ["])
def test_long_monotonous_texts_take_linear_time(unit, tag):
    text = tag + unit * (MAX_CHARS // len(unit))
    start = time.process_time()
    parse_answer(text)
    # A quadratic pass over 100,000 characters takes minutes.
    assert time.process_time() - start < 10


@settings(deadline=None)
@given(st.sampled_from(["", "Detections:", "Answer: x\nSegmentations: "]), NASTY, NASTY)
def test_no_text_is_too_strange(tag, first, second):
    parsed = parse_answer(f"{tag}{first} [1, 2, 3, 4]{second}")
    report = parsed.report
    items = len(parsed.answer.detections or ()) + len(parsed.answer.segmentations or ())
    assert report.num_parsed == items == len(parsed.detection_spans) + len(parsed.segmentation_spans)
    written = serialise(parsed.answer)  # what could be read can be written, and read again
    assert parse_answer(written.text).answer == written.answer
