from __future__ import annotations

import math

import pytest

from flmm_detseg.errors import ConfigError
from flmm_detseg.utils.values import (
    CONTROL_WORDS,
    DEFAULT_MAX_PIXELS,
    FieldError,
    check_text,
    check_words,
    flag,
    identifier,
    integer,
    is_number,
    max_pixels,
    number,
    picture_size,
    printable,
    shown,
)

NO_NUMBERS = [None, True, "7", [7], {}, math.nan, math.inf, -math.inf, 10**400, -(10**5000), 1e300]


@pytest.mark.case("data/07_infinity_and_long_integers")
@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: shown(value)[:12])
def test_values_that_are_no_numbers(value):
    assert not is_number(value)
    with pytest.raises(FieldError, match="`x` is .*, not a finite number"):
        number(value, "x")
    if value != "7":
        with pytest.raises(FieldError, match="`x` is"):
            integer(value, "x", text=True)
    if value is not True:
        with pytest.raises(FieldError, match="it must be 0 or 1"):
            flag(value, "x")


def test_numbers_integers_and_flags():
    assert (number(3, "x"), number(-2.5, "x", -3, 0)) == (3.0, -2.5)
    assert (integer(7, "x"), integer(7.0, "x"), integer("12", "x", text=True)) == (7, 7, 12)
    assert [flag(value, "x") for value in (0, 1, 0.0, 1.0, False, True)] == [False, True] * 3
    for value in (7.5, "7", "１２", "1e3", "9" * 30):
        with pytest.raises(FieldError, match="not an integer"):
            integer(value, "x", text=value != "7")
    with pytest.raises(FieldError, match="must be 1 to 5"):
        integer(6, "x", 1, 5)
    with pytest.raises(FieldError, match="must be 0 or 1"):
        flag("0", "x")
    assert (identifier("a", "id"), identifier(5, "id"), identifier(5.0, "id")) == ("a", 5, 5)
    for value in (None, True, [1], 2**70, math.nan):
        with pytest.raises(FieldError, match="`id` is"):
            identifier(value, "id")


@pytest.mark.case("security/decompression")
def test_sizes_and_the_limit_of_pixels(monkeypatch):
    assert picture_size(40, "60") == (40, 60)
    for size in ((0, 4), (4, -1), (math.inf, 4), (4, 4.5), (None, 4), (10**9, 10**9)):
        with pytest.raises(FieldError, match="height|width|more than"):
            picture_size(*size)
    assert max_pixels() == DEFAULT_MAX_PIXELS
    monkeypatch.setenv("FLMM_DETSEG_MAX_PIXELS", "100")
    with pytest.raises(FieldError, match="FLMM_DETSEG_MAX_PIXELS"):
        picture_size(11, 10)
    monkeypatch.setenv("FLMM_DETSEG_MAX_PIXELS", "many")
    with pytest.raises(ConfigError, match="FLMM_DETSEG_MAX_PIXELS is 'many'"):
        picture_size(11, 10)


@pytest.mark.case("data/16_check_passes_what_training_cannot_read")
def test_texts():
    for text in ("a cup", "naïve 🙂 कमी", "  "):
        assert check_text(text, "caption") == text
    faults = {"a \ud83d cup": "half a character", "a\0b": "NUL"}
    for text, match in faults.items():
        with pytest.raises(FieldError, match=f"`caption` holds .*{match}"):
            check_text(text, "caption")
    for value in (None, 5, ["x"], b"x"):
        with pytest.raises(FieldError, match="not a text"):
            check_text(value, "caption")
    with pytest.raises(FieldError, match="is empty"):
        check_text(" ", "caption", empty=False)


def test_control_words():
    for text in ("a <s> cup", "<unk>", "<pad>", "a < b", "</S>"):
        assert check_words(text, "caption") == text
    for word in CONTROL_WORDS:
        with pytest.raises(FieldError, match=r"`caption` holds the control word .*remove it") as caught:
            check_words(f"a {word} cup", "caption")
        assert caught.value.kind == "control word"
        assert word in str(caught.value)
    with pytest.raises(FieldError, match="NUL"):
        check_words("a\0b", "caption")


@pytest.mark.case("security/text")
def test_what_an_error_shows_is_short_and_printable():
    for value in ("a" * 10**6, 10**5000, [[[[[1]]]]] * 10**4, {"\ud800": "\x1b[2J"}, {"a": 10**5000}):
        text = shown(value)
        assert len(text) < 700
        assert text.isprintable()
        text.encode("utf-8")
    assert printable("schön\ufeff\x1b\ud800\n") == "schön\\ufeff\\x1b\\ud800\\n"
    assert len(printable("a" * 10**6)) < 2000
