from __future__ import annotations

import pytest
import torch
from tiny import tiny_tokenizer

from flmm_detseg.ops.spans import tokens_of_spans


def words_of(text: str, span_words: list[list[str]]) -> list[list[str]]:
    """Tokens (as text) of phrases given by their words, through a real tokenizer."""
    encoding = tiny_tokenizer()(text, return_offsets_mapping=True)
    spans = [
        [(text.index(words), text.index(words) + len(words)) for words in phrase] for phrase in span_words
    ]
    members = tokens_of_spans(encoding.offset_mapping, text, spans)
    tokens = tiny_tokenizer().convert_ids_to_tokens(encoding.input_ids)
    return [[token for token, member in zip(tokens, row) if member] for row in members]


def test_whole_words_of_a_phrase():
    assert words_of("a red star near a blue ring .", [["red star"], ["blue ring"]]) == [
        ["red", "star"],
        ["blue", "ring"],
    ]


def test_phrase_of_several_spans_and_overlapping_phrases():
    text = "the large red star ."
    assert words_of(text, [["the", "star"], ["large red star"], ["red"]]) == [
        ["the", "star"],
        ["large", "red", "star"],
        ["red"],
    ]


def test_part_of_a_word_takes_every_piece_it_touches():
    assert words_of("a cat", [["at"]]) == [["##a", "##t"]]


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        ((1, 3), [False, True, False]),
        ((0, 2), [True, False, False]),
        ((1, 2), [False, False, False]),
        ((2, 4), [False, True, False]),
        ((2, 5), [False, True, True]),
    ],
)
def test_a_shared_space_does_not_count(span, expected):
    # Tokens that hold the space before their word, as sentencepiece's: "a", " b", " c".
    members = tokens_of_spans([(0, 1), (1, 3), (3, 5)], "a b c", [[span]])
    assert members.tolist() == [expected]


def test_special_tokens_and_empty_inputs():
    assert tokens_of_spans([(0, 0), (0, 1)], "a", [[(0, 1)]]).tolist() == [[False, True]]
    assert tokens_of_spans([(0, 1)], "a", []).shape == (0, 1)
    assert tokens_of_spans([], "", [[]]).shape == (1, 0)
    assert tokens_of_spans([(0, 1)], "a", []).dtype == torch.bool


def test_several_byte_tokens_of_one_character():
    # Byte fallback: two tokens with the range of one character.
    assert tokens_of_spans([(0, 1), (0, 1), (1, 2)], "äb", [[(0, 1)]]).tolist() == [[True, True, False]]
