"""The rule that finds a tokenizer's number words, on tokenizers of every kind that the tests have."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from flmm_detseg.errors import ConfigError
from flmm_detseg.language import NumberWords, number_words
from flmm_detseg.language.number_words import chosen_numbers
from flmm_detseg.utils.tokenizer_file import read_offsets

TENS = NumberWords(tuple(range(0, 1000, 10)), padded=True)


def offsets_of(tokenizer: Tokenizer):
    return lambda text: tokenizer.encode(text, add_special_tokens=False).offsets


def of_words(words: list[str]):
    """Whole words, everything else letter by letter."""
    letters = [chr(code) for code in range(33, 127)]
    vocab = {token: k for k, token in enumerate([*letters, *(f"##{c}" for c in letters), "<unk>"])}
    for word in words:
        vocab.setdefault(word, len(vocab))
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return offsets_of(tokenizer)


def byte_level(corpus: list[str], *, split_digits: bool):
    """As Qwen's and GPT's: a space belongs to the word after it."""
    tokenizer = Tokenizer(models.BPE())
    steps = [pre_tokenizers.Digits(individual_digits=True)] if split_digits else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=6000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return offsets_of(tokenizer)


@pytest.mark.parametrize("model", ["tiny_llava", "tiny_llava_reason", "tiny_llava_streams"])
def test_the_tiny_models_write_tens_of_three_digits(model):
    assert number_words(read_offsets(f"data/models/{model}")) == TENS


def test_digits_that_are_tokens_of_their_own_change_nothing():
    corpus = [f"[{number}, {number}]" for number in range(1000)] * 3
    assert number_words(byte_level(corpus, split_digits=True)) is None
    assert number_words(of_words([])) is None
    assert number_words(offsets_of(tiny_tokenizer().backend_tokenizer)) is None


def test_numbers_that_are_all_tokens_change_nothing():
    assert number_words(of_words([str(number) for number in range(1000)])) is None
    corpus = [f"[{number}, {number} {number}]" for number in range(1000)] * 3
    assert number_words(byte_level(corpus, split_digits=False)) is None


def test_holes_are_rounded_over_and_wide_holes_give_up():
    known = [number for number in range(1000) if number % 7 or number < 10]  # digits are letters, too
    assert number_words(of_words([str(number) for number in known])) == NumberWords(
        tuple(known), padded=False
    )
    assert number_words(of_words([str(number) for number in known if not 300 < number < 340])) is None
    assert number_words(of_words([f"{number:03d}" for number in range(0, 1000, 25)])) is None


@given(value=st.integers(0, 999))
def test_the_nearest_word_is_the_nearest(value):
    expected = min(range(0, 1000, 10), key=lambda word: (abs(word - value), word))
    assert TENS.nearest(value) == expected
    assert TENS.spell(expected) == str(expected).zfill(3)


def test_polygons_keep_three_points():
    assert TENS.polygon(((1, 1), (2, 2), (99, 3), (50, 70))) == ((0, 0), (100, 0), (50, 70))
    assert TENS.polygon(((1, 1), (2, 2), (3, 3))) == ((0, 0), (0, 0), (0, 0))


def test_faulty_words_and_files_are_refused(tmp_path):
    for values in ((), (5, 5), (3, 1), (-1, 4), (0, 1000)):
        with pytest.raises(ConfigError, match=r"must rise within 0..999"):
            NumberWords(values, padded=False)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="does not exist: save the tokenizer"):
        read_offsets(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="is no tokenizer that can be read"):
        read_offsets(tmp_path)


@pytest.mark.parametrize("numbers", [dict(values=[1, 2]), dict(values=[1], padded=True, width=3)], ids=str)
def test_arguments_of_number_words_are_named(numbers):
    with pytest.raises(ConfigError, match="`values` and `padded` are needed"):
        chosen_numbers(numbers)
