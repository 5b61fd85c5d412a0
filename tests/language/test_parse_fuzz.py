"""100,000 damaged answers: no exception, and what stands before the damage is read as if nothing had happened."""

import random
import time

import pytest
from language_answers import random_answer

from flmm_detseg.language import parse_answer, serialise

NUM_DAMAGED = 100_000
SNIPPETS = (
    *"[](){}<>;:,.-\n\t \x00\"'\\|",
    *(
        "<SEG>",
        "<SEG",
        "SEG>",
        "<TASK_DET>",
        "Detections:",
        "Answer:",
        "segmentations :",
        "none",
        "; ",
        "[[",
        "]]",
    ),
    *(
        "-7",
        "1000",
        "0.5",
        "1e5",
        "9" * 400,
        "-" + "9" * 30,
        "99.99",
        "٣",
        "½",
        "²",
        "NaN",
        "inf",
        "0x1F",
        "1_000",
    ),
    *(
        "é",
        "汉字",
        "\U0001f600",
        "\u202e",
        "\ud800",
        "\u2028",
        "；",
        "：",
        "İ",
        "ſegmentations:",
        "\u0301" * 5,
    ),
)


def damage(text: str, generator: random.Random) -> tuple[str, int]:
    """A damaged copy and the length of its untouched beginning."""
    untouched = len(text)
    for _ in range(generator.choice((1, 1, 1, 3))):
        at = generator.randint(0, len(text))
        until = min(len(text), at + generator.choice((1, 1, 2, 5, 20)))
        kind = generator.randrange(6)
        if kind == 0:
            text = text[:at] + text[until:]
        elif kind == 1:
            text = text[:at] + generator.choice(SNIPPETS) + text[at:]
        elif kind == 2:
            text = text[:at]
        elif kind == 3:
            text = text[:at] + text[at:until][::-1] + text[until:]
        elif kind == 4:
            text = text[:at] + chr(generator.randrange(0x110000)) + text[until:]
        else:
            text = text[:at] + text[at:until] * generator.randint(2, 4) + text[until:]
        untouched = min(untouched, at)
    return text, untouched


def kept(items, spans, text, untouched):
    """The items that the damage cannot have touched: their separator stands before it."""
    return [
        item for item, span in zip(items or (), spans) if span.end < untouched and text[span.end] in ";\n"
    ]


@pytest.mark.slow
def test_damaged_answers():
    generator = random.Random(0)
    written = [serialise(random_answer(generator)) for _ in range(400)]
    originals = [(one.text, parse_answer(one.text)) for one in written]
    for one, (_, parsed) in zip(written, originals):
        assert parsed.answer == one.answer
    num_checked = num_lost = 0
    start = time.perf_counter()
    for index in range(NUM_DAMAGED):
        text, original = originals[index % len(originals)]
        damaged, untouched = damage(text, generator)
        parsed = parse_answer(damaged)
        boxes = kept(original.answer.detections, original.detection_spans, text, untouched)
        masks = kept(original.answer.segmentations, original.segmentation_spans, text, untouched)
        assert list((parsed.answer.detections or ())[: len(boxes)]) == boxes, damaged
        assert list((parsed.answer.segmentations or ())[: len(masks)]) == masks, damaged
        num_checked += len(boxes) + len(masks)
        num_lost += parsed.report.num_bad
    seconds = time.perf_counter() - start
    print(
        f"{NUM_DAMAGED} damaged answers in {seconds:.1f} s, {num_checked} items before the damage, {num_lost} lost"
    )
    assert num_checked > NUM_DAMAGED / 2  # the check above had something to check
    assert num_lost > NUM_DAMAGED / 10  # and the damage was damage
