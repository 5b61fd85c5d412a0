"""From typed phrases and spans to the phrases of a sample."""

from __future__ import annotations

import pytest

from flmm_detseg.errors import DataError, PhraseNotFoundError
from flmm_detseg.inference.phrases import check_spans, locate_phrases, noun_phrases

CAPTION = "A starfish and a star, and a small star."


def _texts(caption: str, phrases: list[str]) -> list[str]:
    return [caption[start:end] for phrase in locate_phrases(caption, phrases) for start, end in phrase.spans]


def test_whole_words_only():
    (phrase,) = locate_phrases(CAPTION, ["star"])
    assert phrase.spans == ((17, 21),)


def test_naming_a_phrase_again_means_its_next_occurrence():
    first, second = locate_phrases(CAPTION, ["star", "star"])
    assert (first.spans, second.spans) == (((17, 21),), ((35, 39),))
    with pytest.raises(
        PhraseNotFoundError, match=r"'star' occurs only 2 time\(s\), asked for 3, in the caption"
    ):
        locate_phrases(CAPTION, ["star"] * 3)


def test_case_counts_only_where_it_decides():
    assert _texts(CAPTION, ["a starfish"]) == ["A starfish"]
    assert _texts("Star and star", ["star"]) == ["star"]
    assert _texts("İ saw a Star", ["a star"]) == ["a Star"]


def test_absent_phrase_names_phrase_and_caption():
    with pytest.raises(PhraseNotFoundError) as caught:
        locate_phrases(CAPTION, ["a star", "the moon"], "image 3")
    assert "image 3" in str(caught.value)
    assert "'the moon'" in str(caught.value)
    assert CAPTION in str(caught.value)


@pytest.mark.parametrize("phrase", ["", "  ", "tar", "a sta", "fish"])
def test_parts_of_words_and_nothing_are_not_found(phrase):
    with pytest.raises(PhraseNotFoundError):
        locate_phrases(CAPTION, [phrase])


def test_scripts_without_spaces_need_no_word_border():
    assert _texts("草地上的一只狗", ["狗", "草地"]) == ["狗", "草地"]


def test_punctuation_may_be_part_of_a_phrase():
    assert _texts("say 'a star .' twice", ["a star .", "'a star .'"]) == ["a star .", "'a star .'"]


def test_spans_may_have_several_parts():
    phrases = check_spans(CAPTION, [(0, 10), [(15, 21), (27, 39)]])
    assert [phrase.spans for phrase in phrases] == [((0, 10),), ((15, 21), (27, 39))]


@pytest.mark.parametrize("span", [(5, 5), (6, 2), (-1, 3), (30, 99), (1, 2)])
def test_spans_outside_or_without_text_are_refused(span):
    with pytest.raises(PhraseNotFoundError, match="holds no text"):
        check_spans(CAPTION, [span])


@pytest.mark.parametrize("entry", [(1, 2, 3), [1.0, 2.0], [(1, 2, 3)], []])
def test_malformed_spans_are_refused(entry):
    with pytest.raises(DataError, match="span"):
        check_spans(CAPTION, [entry])


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
