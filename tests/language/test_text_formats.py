"""Every text format: what is written is read again; damaged texts lose no more than the damage; names and configs."""

from __future__ import annotations

import json
import random
import time

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
FORMATS = {
    "template": JointTemplate(),
    "numbers": JointTemplate(numbers=TINY),
    "words": WORDS,
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
    except DataError:  # a caption's phrase may have no words left
        assert isinstance(form, BoxedCaption)
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


@pytest.mark.parametrize("name", ["words", "json", "json in pixels", "caption"])
@RELAXED
@given(text=NASTY | st.text(max_size=200), size=SIZES)
def test_any_text_is_read_without_an_error(name, text, size):
    FORMATS[name].parse(text, size)


@pytest.mark.parametrize(
    "unit",
    ['{"', '{"bbox_2d": [1, ', "[{", "a 100 200 300 400 ", "```json", '{"a": "', "[[[", "detections: a 1 "],
)
def test_time_grows_with_the_length_alone(unit):
    text = (unit * MAX_CHARS)[:MAX_CHARS]
    for form in (FORMATS["json"], WORDS, BoxedCaption()):
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
        "qwen_json",
        "qwen_json",
        "boxed_caption",
    ]
    assert text_format("qwen_json_pixels").frame == "pixels"
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
