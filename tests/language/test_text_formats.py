"""Every text format: what is written is read again; damaged texts lose no more than the damage; names and configs."""

from __future__ import annotations

import json
import random
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from language_answers import LABELS, NASTY, answers, boxes, random_answer
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.language import (
    BoxedCaption,
    BoxItem,
    JointAnswer,
    JointTemplate,
    MaskItem,
    QwenJSON,
    build_prompt,
    draw_mask,
    parse_answer,
    serialise,
    text_format,
)
from flmm_detseg.language.parse import MAX_CHARS
from flmm_detseg.language.qwen_json import resized_size
from flmm_detseg.language.wording import normalise_label
from flmm_detseg.utils.choices import TEXT_FORMATS

RELAXED = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
TINY = "data/models/tiny_llava"
WORDS = JointTemplate(numbers=TINY, words=True, mask_token="[SEG]")
SIZES = st.tuples(st.integers(1, 3000), st.integers(1, 3000))
MASK_FORMS = (JointTemplate(masks="runs", side=16), JointTemplate(masks="places"))
FORMATS = {
    "template": JointTemplate(),
    "numbers": JointTemplate(numbers=TINY),
    "words": WORDS,
    "runs": MASK_FORMS[0],
    "runs of the image's pixels, in words": JointTemplate(masks="runs", side=0, words=True),
    "places": MASK_FORMS[1],
    "places in words": JointTemplate(masks="places", numbers=TINY, words=True),
    "json": QwenJSON(),
    "json in pixels": QwenJSON(frame="pixels"),
    "json without fence": QwenJSON(fenced=False),
    "caption": BoxedCaption(),
}


def limited(answer: JointAnswer, form) -> JointAnswer:
    """The sections that a format has."""
    kept = {name: getattr(answer, name) for name in form.sections}
    return JointAnswer(**kept)


def nameable(answer: JointAnswer) -> bool:
    return all(
        normalise_label(item.label) for item in (answer.detections or ()) + (answer.segmentations or ())
    )


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
@RELAXED
@given(answer=answers(), size=SIZES)
def test_every_format_reads_exactly_what_it_wrote(form, answer, size):
    answer = limited(answer, form)
    assume(nameable(answer))
    try:
        written = form.write(answer, size)
    except DataError:  # a caption's phrase may have no words left, nor an outline a cell of a grid
        assert isinstance(form, BoxedCaption) or form.masks != "outlines"
        return
    parsed = form.parse(written.text, size)
    expected = written.answer
    if isinstance(form, BoxedCaption) or (written.text == "" and expected.detections is None):
        expected = JointAnswer(expected.answer, parsed.answer.detections and expected.detections or ())
        parsed_answer = JointAnswer(parsed.answer.answer, parsed.answer.detections or ())
    else:
        parsed_answer = parsed.answer
    assert parsed_answer == expected
    assert parsed.report.num_bad == parsed.report.num_repaired == parsed.report.num_repeated == 0
    assert form.write(written.answer, size).text == written.text
    position = 0
    for start, end in written.section_spans.values():
        assert start == position
        position = end
    assert position == len(written.text)
    for item, span in zip(parsed.answer.detections or (), parsed.detection_spans, strict=True):
        assert len(span.values) == 4
        assert all(written.text[a:b].strip("0123456789") == "" for a, b in span.values), item


@RELAXED
@given(answer=answers())
def test_the_template_is_the_serialiser_byte_for_byte(answer):
    assume(nameable(answer))
    form = text_format("template")
    assert form.write(answer, (10, 10)) == serialise(answer)
    assert form.parse(serialise(answer).text, (10, 10)) == parse_answer(serialise(answer).text)
    assert form.ask("What?", ("detections",)) == build_prompt("What?", ("detections",))


@RELAXED
@given(items=st.lists(boxes(st.sampled_from(LABELS)), max_size=5), size=SIZES)
def test_json_says_what_any_json_reader_finds_in_it(items, size):
    """Independent of our parser: Python's own reader, and the boxes within half a pixel or half a step."""
    form = QwenJSON(frame="pixels", fenced=False)
    written = form.write(JointAnswer(detections=tuple(items)), size)
    height, width = smart_resize(*size, 28, form.min_pixels, form.max_pixels) if ratio(size) else (0, 0)
    assume(height > 0)
    read = json.loads(written.text)
    assert [entry["label"] for entry in read] == [
        normalise_label(items[k].label) for k in written.detection_order
    ]
    for entry, index in zip(read, written.detection_order, strict=True):
        scaled = [v / 999 * side for v, side in zip(items[index].box, (width, height) * 2)]
        assert all(abs(a - b) <= 0.5 + 1e-9 for a, b in zip(entry["bbox_2d"], scaled))


def ratio(size: tuple[int, int]) -> bool:
    return max(size) / min(size) <= 200


@RELAXED
@given(size=SIZES, limits=st.sampled_from([(3136, 12845056), (3136, 1003520), (100352, 401408)]))
def test_images_are_resized_as_the_processor_does(size, limits):
    assume(ratio(size))
    assert resized_size(size, 28, *limits) == smart_resize(*size, 28, *limits)


CAR = BoxItem("car", (100, 200, 300, 400))
ONE = '{"bbox_2d": [100, 200, 300, 400], "label": "car"}'


@pytest.mark.parametrize(
    ("text", "answer", "found", "bad"),
    [
        (f"```json\n[{ONE}]\n```", None, (CAR,), 0),
        (f"Here they are:\n```\n[{ONE}]\n```", "Here they are:", (CAR,), 0),
        (f"[{ONE}] That is all.", "That is all.", (CAR,), 0),
        (ONE, None, (CAR,), 0),
        ('{"objects": [' + ONE + "]}", None, (CAR,), 0),
        (f'[{ONE}, {{"bbox_2d": [1, 2, 3', None, (CAR,), 1),
        (f'[{ONE}, {{"bbox_2d": [1, 2, 3, 4], "lab', None, (CAR,), 1),
        (f'[{ONE}, {{"bbox_2d": [1, 2, 3], "label": "dog"}}]', None, (CAR,), 1),
        (f'[{ONE}, {{"bbox_2d": [1, 2, 3, 4]}}]', None, (CAR,), 1),
        (f'[{ONE} {{"bbox_2d": null, "label": "dog"}}', None, (CAR,), 0),
        ("{'bbox_2d': (100, 200, 300, 400), 'label': 'car',}", None, (CAR,), 0),
        ('[{"bbox": [300, 400, 100, 200], "name": "car"}]', None, (CAR,), 0),
        (
            '[{"bbox_2d": [0.1, 0.2, 0.3, 0.4], "label": "car"}]',
            None,
            (BoxItem("car", (100, 200, 300, 400)),),
            0,
        ),
        (
            '[{"bbox_2d": [-5, 200, 300, 9e99], "label": "car"}]',
            None,
            (BoxItem("car", (0, 200, 300, 999)),),
            0,
        ),
        (f"[{ONE}, {ONE}]", None, (CAR,), 0),
        ("null", None, (), 0),
        ("```json\nnull\n```", None, (), 0),
        ("There is none.\n[]", "There is none.", (), 0),
        ("I see a car [1, 2].", "I see a car [1, 2].", None, 0),
        ("", None, None, 0),
    ],
)
def test_damaged_json_is_salvaged(text, answer, found, bad):
    parsed = QwenJSON().parse(text, (480, 640))
    assert (parsed.answer.answer, parsed.answer.detections) == (answer, found)
    assert parsed.report.num_bad == bad
    strict = text.startswith(("```", "Here", "[{", "{", "null", "There", "I ")) and "300, 400]" in text
    assert parsed.report.num_repaired == (0 if strict or not found else 1)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("detections : ring 000 040 560 990 ; person 2 010 000 060 100 ; 7 000 000 700 800", 3),
        ("answer : two rings . detections : ring 000 040 560 990 segmentations : ring [SEG]", 1),
        ("Detections: ring [0, 40, 560, 990]", 1),
        ("detections : ring 000 040 560", 0),
        ("detections : ring 000 040 560 990 ; star 1", 1),
        ("detections : 000 040 560 990", 0),
        ("detections : none", 0),
    ],
)
def test_boxes_without_brackets(text, found):
    parsed = WORDS.parse(text, (10, 10))
    assert len(parsed.answer.detections) == found
    assert parsed.report.num_bad == ("star 1" in text) + (text.endswith(" 560") or ": 000" in text)


def test_a_caption_gives_its_phrases_their_boxes():
    text = (
        "there are 120 rings . a small red ring 030 120 400 500 is left of the star 510 500 700 800 and a heart "
        "010 020 030 . the ring 030 120 400 500 ."
    )
    parsed = BoxedCaption().parse(text, (100, 100))
    assert [item.label for item in parsed.answer.detections] == ["small red ring", "star", "ring"]
    assert parsed.answer.detections[0].box == (30, 120, 400, 500)
    assert parsed.report.num_bad == 1
    starts = [text[span.start : span.start + 4] for span in parsed.detection_spans]
    assert starts == ["smal", "star", "ring"]


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("template", "numbers")])
@RELAXED
@given(text=NASTY | st.text(max_size=200), size=SIZES)
def test_any_text_is_read_without_an_error(name, text, size):
    FORMATS[name].parse(text, size)


@pytest.mark.parametrize(
    "unit",
    [
        *(
            '{"',
            '{"bbox_2d": [1, ',
            "[{",
            "a 100 200 300 400 ",
            "```json",
            '{"a": "',
            "[[[",
            "detections: a 1 ",
        ),
        *("segmentations: a at the ", "segmentations: a AAAA ", "segmentations:\na at the top left\n"),
    ],
)
def test_time_grows_with_the_length_alone(unit):
    text = (unit * MAX_CHARS)[:MAX_CHARS]
    for form in (FORMATS["json"], WORDS, BoxedCaption(), *MASK_FORMS):
        start = time.process_time()
        form.parse(text, (100, 100))
        assert time.process_time() - start < 5


def test_cut_and_broken_json_keeps_what_stands_before_the_damage():
    """A corpus of damaged texts: whole items before the place of the damage are read as if nothing had happened."""
    generator, form = random.Random(0), QwenJSON()
    snippets = [
        "{",
        "}",
        "[",
        "]",
        '"',
        ",",
        "null",
        "```",
        "9" * 40,
        "\\",
        "\n",
        "é",
        '{"label": "x"',
        "NaN",
    ]
    checked = lost = 0
    for _ in range(1500):
        answer = limited(random_answer(generator), form)
        written = form.write(answer, (480, 640))
        if not written.answer.detections:
            continue
        at = generator.randrange(written.section_spans["detections"][0] + 8, len(written.text))
        kind, text = generator.randrange(3), written.text
        if kind == 0:
            text = text[:at]
        elif kind == 1:
            text = text[:at] + generator.choice(snippets) + text[at:]
        else:
            text = text[:at] + text[at + generator.randint(1, 20) :]
        whole = form.parse(written.text, (480, 640))
        before = [item for item, span in zip(whole.answer.detections, whole.detection_spans) if span.end < at]
        parsed = form.parse(text, (480, 640))
        assert list((parsed.answer.detections or ())[: len(before)]) == before, text
        checked, lost = checked + len(before), lost + parsed.report.num_bad
    assert checked > 1000
    assert lost > 100


def test_formats_by_name_and_by_config():
    assert [text_format(name).name for name in TEXT_FORMATS] == [
        "template",
        "template",
        "template",
        "qwen_json",
        "qwen_json",
        "boxed_caption",
    ]
    assert text_format("qwen_json_pixels").frame == "pixels"
    assert text_format("template_runs").masks == "runs"
    assert text_format({"type": JointTemplate, "masks": "runs", "side": 32}).side == 32
    assert text_format("template_places").masks == "places"
    assert text_format(WORDS) is WORDS
    made = text_format(
        {"type": JointTemplate, "words": True, "numbers": {"values": [0, 500, 999], "padded": True}}
    )
    answer = JointAnswer(
        detections=(BoxItem("a b", (10, 260, 740, 800)),), segmentations=(MaskItem("a", seg_index=3),)
    )
    assert made.write(answer, (1, 1)).text == "detections: a b 000 500 500 999\nsegmentations: a <SEG>"
    assert text_format({"type": "qwen_json", "fenced": False}).fenced is False
    for wrong, match in (
        ("qwen", "there is no text format 'qwen'; did you mean"),
        ({"type": "json"}, "`text_format.type` is 'json'"),
        ({"type": JointTemplate, "word": True}, "`text_format`.*'word'"),
        ({"type": dict}, "which is no text format"),
        ({"type": JointTemplate, "mask_token": "<M>"}, "`mask_token` is '<M>'"),
        ({"type": JointTemplate, "masks": "rle"}, "`masks` is 'rle'; allowed: outlines, runs, places"),
        ({"type": JointTemplate, "masks": "runs", "side": -1}, "`side` is -1"),
        ({"type": JointTemplate, "masks": "runs", "side": 32.0}, "`side` is 32.0; give the rows"),
        ({"type": JointTemplate, "masks": "runs", "side": "64"}, "`side` is '64'; give the rows"),
        ({"type": JointTemplate, "numbers": "no/such/folder"}, "no such folder"),
        ({"type": QwenJSON, "frame": "mm"}, "`frame` of QwenJSON is 'mm'"),
        ({"type": QwenJSON, "min_pixels": 9}, "preprocessor_config.json"),
    ):
        with pytest.raises(ConfigError, match=match):
            text_format(wrong)
    for form in (QwenJSON(), BoxedCaption()):
        with pytest.raises(ConfigError, match="has no section 'segmentations'"):
            form.write(JointAnswer(segmentations=()), (10, 10))
        with pytest.raises(ConfigError, match="has no section 'segmentations'"):
            form.ask("What?", ["segmentations"])


def test_prompts_say_which_sections_are_wanted():
    assert WORDS.ask("how many ?", ("answer",)) == "how many ?"
    assert WORDS.ask("how many [SEG] ?", ("answer", "detections")) == "how many   ? answer with detections ."
    both = WORDS.ask("how many ?", ("segmentations", "detections", "answer"))
    assert both == "how many ? answer with detections and segmentations ."
    assert (
        QwenJSON().ask("Cars?", ["detections"]) == "Cars? Output the bounding box coordinates in JSON format."
    )
    assert "Then locate every object" in QwenJSON().ask("How many?", ["answer", "detections"])
    assert BoxedCaption().ask(BoxedCaption.objects_question, ["detections"]) == BoxedCaption.objects_question


RUNS, PLACES = JointTemplate(masks="runs", side=4), JointTemplate(masks="places")
TOP_LEFT = (((0, 0), (333, 0), (333, 333), (0, 333)),)
# 5 cells outside, 3 inside, 8 outside.
CODE = "NTM4"


@pytest.mark.parametrize(
    ("text", "labels", "bad", "repaired"),
    [
        (f"Segmentations: ring {CODE}; small star {CODE}", ["ring", "small star"], 0, 0),
        (f"Answer: one\nSegmentations: ring {CODE}\nDetections: ring [1, 2, 3, 4]", ["ring"], 0, 0),
        (f"Answer: one segmentation: ring {CODE}", ["ring"], 0, 0),
        (f"Segmentations: ring 5 {CODE}.", ["ring 5"], 0, 1),
        (f"Segmentations: ring {CODE}; star NTM; disc {CODE}", ["ring", "disc"], 1, 0),
        (f"Segmentations: ring {CODE}; star NTM5", ["ring"], 1, 0),
        (f"Segmentations: ring {CODE}; star {CODE}{CODE}", ["ring"], 1, 0),
        (f"Segmentations: ring {CODE}; star", ["ring"], 1, 0),
        (f"Segmentations: {CODE}", [], 1, 0),
        (f"Segmentations: none {CODE}", ["none"], 0, 0),
        ("Segmentations: none", [], 0, 0),
        (
            f"Segmentations: ring {CODE}; star [1, 2, 30, 40, 5, 600]; sky <SEG>",
            ["ring", "star", "sky"],
            0,
            0,
        ),
    ],
)
def test_run_lengths_are_salvaged_item_by_item(text, labels, bad, repaired):
    parsed = RUNS.parse(text, (480, 640))
    assert [item.label for item in parsed.answer.segmentations] == labels
    assert (parsed.report.num_bad, parsed.report.num_repaired) == (bad, repaired)
    for item, span in zip(parsed.answer.segmentations, parsed.segmentation_spans, strict=True):
        if item.runs is not None:
            assert item.runs.counts == "538"
            assert [text[a:b] for a, b in span.values] == [CODE]
            assert text[span.start : span.end] == f"{item.label} {CODE}"


@pytest.mark.parametrize(
    ("text", "labels", "bad", "repaired"),
    [
        ("Segmentations: ring at the top left; star, red at the top left", ["ring", "star, red"], 0, 0),
        ("segmentations : ring in the upper left corner ; star at the top left .", ["ring", "star"], 0, 2),
        ("I see one. Segmentations: ring at the top left", ["ring"], 0, 0),
        ("Segmentations: ring at the top left; star at the left right; disc", ["ring"], 2, 0),
        ("Segmentations: at the top left", [], 1, 0),
        ("Segmentations: ring at the to", [], 1, 0),
        ("Segmentations: none", [], 0, 0),
    ],
)
def test_places_are_salvaged_item_by_item(text, labels, bad, repaired):
    parsed = PLACES.parse(text, (480, 640))
    assert [(item.label, item.polygons) for item in parsed.answer.segmentations] == [
        (label, TOP_LEFT) for label in labels
    ]
    assert (parsed.report.num_bad, parsed.report.num_repaired) == (bad, repaired)
    assert all(
        problem.kind in ("no_coordinates", "no_label", "repaired") for problem in parsed.report.problems
    )


def test_masks_in_words_are_only_read_where_they_are_written():
    for text in (f"Segmentations: ring {CODE}", "Segmentations: ring at the top left"):
        parsed = JointTemplate().parse(text, (4, 4))
        assert parsed.answer.segmentations == ()
        assert parsed.report.num_bad == 1
    boxes = PLACES.parse("Detections: ring at the top left", (4, 4))
    assert boxes.answer.detections == ()
    assert boxes.report.num_bad == 1


def test_each_format_makes_its_own_masks_and_converts_others():
    mask = np.zeros((60, 90), dtype=bool)
    mask[3:17, 4:24] = True
    made = {}
    for form in (JointTemplate(), JointTemplate(masks="runs", side=0), PLACES):
        made[form.masks] = form.mask_item("ring", mask)
        assert form.mask_item("ring", np.zeros_like(mask)) is None
    assert np.array_equal(draw_mask(made["runs"], mask.shape), mask)
    assert made["places"].polygons == TOP_LEFT
    small = np.zeros_like(mask)
    small[0, 0] = True
    assert RUNS.mask_item("ring", small) is None, "between the middles of the cells"
    for item in made.values():
        written = PLACES.write(JointAnswer(segmentations=(item,)), mask.shape)
        assert written.text == "Segmentations: ring at the top left"
        outlines = JointTemplate().write(JointAnswer(segmentations=(item,)), mask.shape)
        assert outlines.answer.segmentations[0].polygons is not None
        runs = RUNS.write(JointAnswer(segmentations=(item,)), mask.shape)
        assert runs.answer.segmentations[0].runs.size == (4, 4)
    nothing = MaskItem("speck", polygons=(((5, 5), (5, 6), (6, 6)),))
    for form in (RUNS, PLACES):
        with pytest.raises(DataError, match="nothing of the mask of 'speck' is left as"):
            form.write(JointAnswer(segmentations=(nothing,)), mask.shape)
    with pytest.raises(DataError, match="a head draws it"):
        draw_mask(MaskItem("ring", seg_index=0), mask.shape)


def test_a_grid_of_the_images_own_pixels_has_its_size():
    form = JointTemplate(masks="runs", side=0)
    mask = np.random.default_rng(0).random((7, 11)) < 0.5
    text = form.write(JointAnswer(segmentations=(form.mask_item("a", mask),)), (7, 11)).text
    assert np.array_equal(draw_mask(form.parse(text, (7, 11)).answer.segmentations[0], (7, 11)), mask)
    other = form.parse(text, (7, 12))
    assert other.answer.segmentations == ()
    assert other.report.num_bad == 1


def test_damaged_masks_in_words_leave_those_before_them():
    generator = random.Random(0)
    masks = np.random.default_rng(0)
    for form in (JointTemplate(masks="runs", side=12), PLACES):
        checked = lost = 0
        for _ in range(300):
            items = []
            for label in ("ring", "t-shirt", "person 2", "none"):
                mask = np.zeros((48, 48), dtype=bool)
                y, x = masks.integers(0, 32, 2)
                mask[y : y + 16, x : x + 12] = True
                items.append(form.mask_item(label, mask))
            written = form.write(JointAnswer(segmentations=tuple(items)), (48, 48))
            whole = form.parse(written.text, (48, 48))
            at = generator.randrange(16, len(written.text))
            text = written.text[:at] + generator.choice(["", "é", "[", "; ", "=", "\n", "9" * 40])
            text += written.text[at + generator.randint(0, 20) :] if generator.random() < 0.7 else ""
            before = [
                item for item, span in zip(items, whole.segmentation_spans, strict=True) if span.end < at
            ]
            parsed = form.parse(text, (48, 48))
            assert list(parsed.answer.segmentations[: len(before)]) == before, text
            checked, lost = checked + len(before), lost + parsed.report.num_bad
        assert checked > 200
        assert lost > 100
