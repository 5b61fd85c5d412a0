import math

import pytest
import torch

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.language import parse_answer, score_detections, span_confidence, token_log_probs

TEXT = "Detections: car [12, 40, 380, 912]; dog [1, 2, 3, 4]"
TOKENS = [
    "Detections",
    ":",
    " car",
    " [",
    "1",
    "2",
    ", ",
    "40",
    ",",
    " 380",
    ",",
    " 912",
    "];",
    " dog",
    " [",
    "1",
]
TOKENS += [", ", "2", ", ", "3", ", ", "4", "]"]
COORDINATES = {4: 0.9, 5: 0.8, 7: 0.7, 9: 0.6, 11: 0.5, 15: 0.3, 17: 0.4, 19: 0.5, 21: 0.6}


def offsets():
    spans, start = [], 0
    for token in TOKENS:
        spans.append((start, start + len(token)))
        start += len(token)
    assert start == len(TEXT)
    return spans


def log_probs():
    probs = torch.full((len(TOKENS),), 1e-3)
    for index, value in COORDINATES.items():
        probs[index] = value
    return probs.log()


def product(*values):
    return math.prod(values)


@pytest.mark.parametrize(
    ("reduce", "car", "dog"),
    [
        ("mean", product(0.9, 0.8, 0.7, 0.6, 0.5) ** 0.2, product(0.3, 0.4, 0.5, 0.6) ** 0.25),
        ("product", product(0.9, 0.8, 0.7, 0.6, 0.5), product(0.3, 0.4, 0.5, 0.6)),
        ("min", 0.5, 0.3),
    ],
)
def test_only_the_tokens_of_the_numbers_count(reduce, car, dog):
    scored = score_detections(parse_answer(TEXT), log_probs(), offsets(), reduce)
    assert [box.label for box in scored.detections] == ["car", "dog"]
    assert [box.score for box in scored.detections] == pytest.approx([car, dog])


def test_tokens_without_characters_do_not_count():
    spans = [(0, 0), *offsets(), (len(TEXT), len(TEXT))]
    values = torch.cat([torch.tensor([-50.0]), log_probs(), torch.tensor([-50.0])])
    parsed = parse_answer(TEXT)
    assert score_detections(parsed, values, spans) == score_detections(parsed, log_probs(), offsets())


def test_one_token_may_serve_two_numbers_and_counts_once():
    assert span_confidence(
        torch.tensor([0.5]).log(), [(0, 9)], [[(0, 2), (4, 6)]], "product"
    ) == pytest.approx([0.5])


def test_items_without_tokens_have_no_score():
    scored = score_detections(parse_answer(TEXT), log_probs()[:13], offsets()[:13])
    assert scored.detections[0].score is not None
    assert scored.detections[1].score is None


def test_answers_without_boxes_pass_through():
    parsed = parse_answer("Answer: yes")
    assert score_detections(parsed, torch.zeros(2), [(0, 7), (7, 11)]) == parsed.answer


def test_log_probs_agree_with_log_softmax():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 11, generator=generator)
    ids = torch.randint(11, (7,), generator=generator)
    expected = torch.log_softmax(logits, -1)[torch.arange(7), ids]
    torch.testing.assert_close(token_log_probs(logits, ids), expected)


def test_unusable_arguments_are_refused():
    with pytest.raises(ConfigError, match="reduce"):
        span_confidence(torch.zeros(1), [(0, 1)], [], "max")
    with pytest.raises(DataError, match="2 token offsets"):
        span_confidence(torch.zeros(3), [(0, 1), (1, 2)], [])
    with pytest.raises(DataError, match="rise"):
        span_confidence(torch.zeros(2), [(3, 4), (1, 2)], [])
