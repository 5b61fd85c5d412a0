"""Which words a mask token of an answer belongs to."""

from __future__ import annotations

import time

import pytest

from flmm_detseg.language.segment_names import MASK_TOKEN, mask_token_spans, name_spans, segment_names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the red ring [SEG] and the star [SEG] .", ["the red ring", "the star"]),
        ("It is [SEG].", [""]),
        ("[SEG]", [""]),
        ("[SEG] [SEG]", ["", ""]),
        ("a dog[SEG], a cat [SEG] next to a mat [SEG]", ["a dog", "a cat", "a mat"]),
        ("Sure, the ring left of the star [SEG].", ["the ring left of the star"]),
        ("a man with a hat on the bench [SEG]", ["a man with a hat on the bench"]),
        ("A ring could roll. So it is the blue ring [SEG].", ["the blue ring"]),
        ("the leaf has no corners , so the large ring [SEG] .", ["the large ring"]),
        ("the star: [SEG]", ["the star"]),
        ("有一只猫。[SEG]", [""]),
        ("a star .\n[SEG]", [""]),
        ("no token at all", []),
        ("草地上的一只狗 [SEG]", ["草地上的一只狗"]),
    ],
)
def test_names(text, expected):
    spans = mask_token_spans(text)
    assert [text[slice(*span)] for span in spans] == [MASK_TOKEN] * len(expected)
    assert segment_names(text, spans) == expected
    for (start, end), (token, _) in zip(name_spans(text, spans), spans, strict=True):
        assert 0 <= start <= end <= token


def test_only_the_spans_count():
    """An LMM may spell the token's text with other tokens; its own places are known by id."""
    text = "the ring [SEG] the star [SEG]"
    assert segment_names(text, [mask_token_spans(text)[1]]) == ["the star"]


@pytest.mark.case("security/parser")
@pytest.mark.parametrize("part", ["the ring of ", "of the " * 3, ". ", "[SEG] ", "a"])
def test_long_answers(part):
    text = part * 8000 + " [SEG]"
    began = time.process_time()
    assert len(segment_names(text, mask_token_spans(text))) == text.count(MASK_TOKEN)
    assert time.process_time() - began < 5
