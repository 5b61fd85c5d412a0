"""Noun phrases of answers."""

from __future__ import annotations

import unicodedata

import pytest

from flmm_detseg.inference.phrases import check_spans
from flmm_detseg.language.noun_phrases import noun_phrases


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red star above a blue ring .", ["a red star", "a blue ring"]),
        (
            "The image shows a man wearing a red hat, standing next to two large dogs.",
            ["a man", "a red hat", "two large dogs"],
        ),
        ("The star is red.", ["The star"]),
        ("a star left of the ring on the left", ["a star", "the ring"]),
        ("the left star", ["the left star"]),
        ("Dogs and a cat", ["Dogs", "a cat"]),
        ("the man's hat and his blue-green umbrella", ["the man's hat", "his blue-green umbrella"]),
        ("all the small rings", ["all the small rings"]),
        (
            "a smiling woman holding a brightly colored kite near the family",
            ["a smiling woman", "a brightly colored kite", "the family"],
        ),
        ("people in the red building", ["people", "the red building"]),
        ("there are three stars and 2 rings", ["three stars", "2 rings"]),
        ("the star [120, 30, 400, 500]", ["the star"]),
        ("a red star 450 290 740 590 is near the 2 rings", ["a red star", "the 2 rings"]),
        ("a dog a cat", ["a dog", "a cat"]),
    ],
)
def test_noun_phrases(text, expected):
    phrases = noun_phrases(text)
    assert [text[slice(*phrase.spans[0])] for phrase in phrases] == expected
    assert phrases == check_spans(text, [phrase.spans[0] for phrase in phrases])


@pytest.mark.parametrize("text", ["", " ... ", "yes", "red", "two", "It is on the left.", "the picture"])
def test_answers_that_name_nothing_have_no_phrases(text):
    assert noun_phrases(text) == ()


def _decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


@pytest.mark.case("model/combining_marks")
def test_noun_phrases_are_not_cut_at_vowel_signs():
    text = "लाल किताब और नीली कुर्सी, एक घर."
    runs = [text[slice(*phrase.spans[0])] for phrase in noun_phrases(text)]
    assert runs == ["लाल किताब और नीली कुर्सी", "एक घर"]
    text = _decomposed("un café près du château")
    assert [text[slice(*phrase.spans[0])] for phrase in noun_phrases(text)] == [text]
    assert noun_phrases(_decomposed("a café near the château"))[0].spans == ((0, 7),)


@pytest.mark.case("security/parser")
@pytest.mark.parametrize("caption", ["ab " * 30_000, ". " * 50_000, "a" * 100_000, "é" * 50_000])
def test_long_captions(caption):
    assert isinstance(noun_phrases(caption), tuple)
