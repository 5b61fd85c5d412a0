import re

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from language_answers import LABELS, answers, boxes

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.language import BoxItem, JointAnswer, MaskItem, SerialiseOptions, parse_answer, serialise
from flmm_detseg.language.wording import normalise_answer, normalise_label

CAR, DOG = BoxItem("car", (1, 2, 30, 40), 0.5), BoxItem("dog", (500, 0, 999, 999))
RELAXED = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])


def nameable(answer):
    return all(
        normalise_label(item.label) for item in (answer.detections or ()) + (answer.segmentations or ())
    )


def test_the_template():
    triangle = ((1, 2), (3, 4), (5, 6))
    written = serialise(
        JointAnswer(
            "two animals",
            (CAR, DOG),
            (
                MaskItem("tree", seg_index=4),
                MaskItem("dog", (triangle, triangle)),
                MaskItem("sky", seg_index=0),
            ),
        )
    )
    assert written.text == (
        "Answer: two animals\n"
        "Detections: dog [500, 0, 999, 999]; car [1, 2, 30, 40]\n"
        "Segmentations: tree <SEG>; dog [1, 2, 3, 4, 5, 6] [1, 2, 3, 4, 5, 6]; sky <SEG>"
    )
    assert written.detection_order == (1, 0)
    assert [item.seg_index for item in written.answer.segmentations] == [0, None, 1]


def test_absent_and_empty_sections():
    assert serialise(JointAnswer("yes")).text == "Answer: yes"
    assert serialise(JointAnswer(None, (), None)).text == "Detections: none"
    assert serialise(JointAnswer(" \n", None, ())).text == "Segmentations: none"
    assert serialise(JointAnswer()).text == ""


@RELAXED
@given(answers(), st.sampled_from(["area", "raster"]))
def test_the_parser_reads_exactly_what_was_written(answer, order):
    assume(nameable(answer))
    written = serialise(answer, SerialiseOptions(box_order=order))
    parsed = parse_answer(written.text)
    assert parsed.answer == written.answer
    assert parsed.report.num_bad == parsed.report.num_repaired == parsed.report.num_repeated == 0
    assert serialise(written.answer, SerialiseOptions(box_order=order)).text == written.text


@RELAXED
@given(answers(labels=st.sampled_from(LABELS), words=st.sampled_from(["yes", "3 cars, parked", "none"])))
def test_quantised_input_comes_back_whole(answer):
    """Independent of what the serialiser says it wrote: items against items, order of the boxes aside."""
    parsed = parse_answer(serialise(answer).text).answer
    assert parsed.answer == answer.answer
    assert (parsed.detections is None) == (answer.detections is None)
    given_boxes = [(box.label, box.box) for box in answer.detections or ()]
    read_boxes = [(box.label, box.box) for box in parsed.detections or ()]
    for box in read_boxes:
        given_boxes.remove(box)
    for label, (x1, y1, x2, y2) in given_boxes:  # only repetitions are missing
        assert any(
            other == label and max(abs(a - x1), abs(b - y1), abs(c - x2), abs(d - y2)) < 50
            for other, (a, b, c, d) in read_boxes
        )
    assert [(m.label, m.polygons) for m in parsed.segmentations or ()] == [
        (m.label, m.polygons) for m in answer.segmentations or ()
    ]


@RELAXED
@given(answers(labels=st.sampled_from(LABELS), words=st.sampled_from(["yes", "3 cars, parked", "none"])))
def test_tokenizers_that_lose_line_breaks_lose_nothing_else(answer):
    written = serialise(answer)
    spaced = re.sub(r"(?<!<SEG)([\[\],;:]|<SEG>)", r" \1 ", written.text)
    spaced = re.sub(r"\s+", " ", spaced)
    parsed = parse_answer(spaced).answer
    assert parsed.detections == written.answer.detections
    expected = None if written.answer.answer is None else re.sub(r"\s*,", " ,", written.answer.answer)
    assert parsed.answer == expected
    assert [m.polygons for m in parsed.segmentations or ()] == [
        m.polygons for m in written.answer.segmentations or ()
    ]


@RELAXED
@given(answers())
def test_section_spans_cut_the_text_into_pieces(answer):
    assume(nameable(answer))
    written = serialise(answer)
    position = 0
    for name, (start, end) in written.section_spans.items():
        assert start == position
        assert written.text[start:end].lower().startswith(name)
        position = end
    assert position == len(written.text)
    assert set(written.section_spans) == {
        name
        for name in ("answer", "detections", "segmentations")
        if getattr(written.answer, name) is not None
    }


@RELAXED
@given(st.text())
def test_normalising_twice_changes_nothing(text):
    assert normalise_label(normalise_label(text)) == normalise_label(text)
    assert normalise_answer(normalise_answer(text)) == normalise_answer(text)


def test_labels_lose_what_would_be_read_as_structure():
    assert normalise_label(" car [1];\n<SEG> detections: x.") == "car 1 SEG detections x"
    assert normalise_answer("Boxes.\nDetections: car <SEG>") == "Boxes.\nDetections - car"


@RELAXED
@given(st.lists(boxes(st.sampled_from(["a", "b"])), max_size=12))
def test_orders(items):
    area = serialise(JointAnswer(None, tuple(items))).answer.detections
    sizes = [(b.box[2] - b.box[0]) * (b.box[3] - b.box[1]) for b in area]
    assert sizes == sorted(sizes, reverse=True)
    raster = serialise(JointAnswer(None, tuple(items)), SerialiseOptions("raster")).answer.detections
    corners = [(b.box[1], b.box[0]) for b in raster]
    assert corners == sorted(corners)
    assert sorted(map(str, area)) == sorted(map(str, raster))
    mirrored = serialise(JointAnswer(None, tuple(items[::-1]))).answer.detections
    assert [b.box for b in mirrored] == [b.box for b in area]


def test_caps_drop_the_smallest_boxes_and_the_last_masks():
    items = tuple(BoxItem("a", (0, 10 * (9 - i), 10 + 10 * i, 999)) for i in range(10))
    written = serialise(JointAnswer(None, items), SerialiseOptions("raster", max_boxes=3))
    assert written.detection_order == (9, 8, 7)
    masks = tuple(MaskItem("a", seg_index=i) for i in range(5))
    written = serialise(JointAnswer(None, None, masks), SerialiseOptions(max_masks=2))
    assert written.text == "Segmentations: a <SEG>; a <SEG>"


def test_repeated_boxes_are_written_once():
    near = BoxItem("Car", (1, 2, 30, 41))
    written = serialise(JointAnswer(None, (CAR, CAR, near, BoxItem("dog", CAR.box))))
    assert [b.label for b in written.answer.detections] == ["Car", "dog"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: BoxItem("a", (0, 0, 1)),
        lambda: BoxItem("a", (0, 0, 1, 1000)),
        lambda: BoxItem("a", (0, 0, 0.5, 1)),
        lambda: BoxItem("a", (5, 0, 1, 1)),
        lambda: MaskItem("a"),
        lambda: MaskItem("a", polygons=(), seg_index=None),
        lambda: MaskItem("a", polygons=(((1, 2), (3, 4), (5, 6)),), seg_index=1),
        lambda: MaskItem("a", polygons=(((1, 2), (3, 4)),)),
        lambda: MaskItem("a", polygons=(((1, 2), (3, -4), (5, 6)),)),
        lambda: serialise(JointAnswer(None, (BoxItem("[;]", (0, 0, 1, 1)),))),
    ],
)
def test_items_that_cannot_be_written_are_refused(make):
    with pytest.raises(DataError):
        make()


def test_options_are_checked():
    with pytest.raises(ConfigError, match="box_order"):
        SerialiseOptions(box_order="size")
    with pytest.raises(ConfigError, match="max_boxes"):
        SerialiseOptions(max_boxes=0)
