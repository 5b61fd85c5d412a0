"""From typed phrases and spans to the phrases of a sample."""

from __future__ import annotations

import random
import time
import unicodedata

import pytest

from flmm_detseg.errors import DataError, PhraseNotFoundError
from flmm_detseg.inference.phrases import check_spans, locate_phrases
from flmm_detseg.language.words import find_words

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


@pytest.mark.case("data/16_check_passes_what_training_cannot_read")
@pytest.mark.parametrize("value", [5, None, b"star", ["star"], float("nan")])
def test_what_is_no_text_and_no_span_is_named(value):
    with pytest.raises(DataError, match="image 3: a phrase is .*, not a text"):
        locate_phrases(CAPTION, ["a star", value], "image 3")
    with pytest.raises(DataError, match="image 3: a span is"):
        check_spans(CAPTION, [(0, 2), value], "image 3")


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


def _decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


@pytest.mark.case("model/combining_marks")
@pytest.mark.parametrize(
    ("caption", "phrase", "expected"),
    [
        ("एक कमी और एक कम", "कम", [(13, 15)]),
        ("எழுத்து ஒரு எழு", "எழு", [(12, 15)]),
        ("كِتَاب و ك", "ك", [(9, 10)]),
        ("un café rouge", _decomposed("café"), [(3, 7)]),
        (_decomposed("un café rouge"), "café", [(3, 8)]),
        (_decomposed("un café rouge"), "cafe", []),
        (_decomposed("UN CAFÉ ROUGE"), "café", [(3, 8)]),
        ("die Straße", "STRASSE", [(4, 10)]),
        (_decomposed("학교 옆의 집"), "학교", [(0, 5)]),
        ("학교에", "학교", [(0, 2)]),
        ("학교에", "하", []),
        ("แมวสีดำ", "แมว", [(0, 3)]),
        ("می\u200cخواهم", "می", []),
        ("می\u200cخواهم", "می\u200cخواهم", [(0, 8)]),
        ("a \u2764\ufe0f heart", "\u2764", [(2, 4)]),
        ("\U0001f469\u200d\U0001f680 and \U0001f680", "\U0001f680", [(8, 9)]),
        ("\u0301a star", "star", [(3, 7)]),
    ],
)
def test_words_of_any_language(caption, phrase, expected):
    """Spans are those of the caption; a mark is part of the word before it."""
    assert find_words(caption, phrase) == expected
    if expected:
        assert locate_phrases(caption, [phrase])[0].spans == (expected[0],)
    else:
        with pytest.raises(PhraseNotFoundError, match="does not occur"):
            locate_phrases(caption, [phrase])


def test_plain_texts_take_a_short_way_to_the_same_words():
    """The long way reads every character; thousands of captions, or of phrases, would wait for it."""
    draw = random.Random(0)
    for _ in range(3000):
        letters = draw.choice(["ab ", "aB_ .", "ab1-' \n", "aA", "a ,B"])
        caption = "".join(draw.choices(letters, k=draw.randrange(14)))
        phrase = "".join(draw.choices(letters, k=draw.randrange(1, 5)))
        # A mark apart from all words leads the long way round and changes nothing else.
        assert find_words(caption, phrase) == find_words(f"{caption}|é", phrase), (caption, phrase)
    caption = "a red star above the green ring, " * 60
    began = time.process_time()
    for _ in range(300):
        assert find_words(caption, "above the green ring")[0] == (11, 31)
    assert time.process_time() - began < 0.4, "4 s by the long way"


@pytest.mark.case("security/parser")
@pytest.mark.parametrize("caption", ["ab " * 30_000, ". " * 50_000, "a" * 100_000, "é" * 50_000])
def test_long_captions(caption):
    """Every part that repeats itself, against every place of a text that does."""
    assert find_words(caption, caption[1 : len(caption) // 2 + 2]) in ([], [(1, len(caption) // 2 + 2)])
