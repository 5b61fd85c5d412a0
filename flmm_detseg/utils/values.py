"""Values from files of any origin: numbers, sizes, ids and texts, checked before they are used.

JSON holds more than native code, tokenizers and tensors survive: infinities, integers of 400 digits, half a surrogate
pair. Each check returns the value in the type that it is used in, or raises :class:`FieldError`, whose message names
the field and shows the value cut short; readers turn that into the problem of one record.
"""

from __future__ import annotations

import math
import numbers
import os
import reprlib
from collections.abc import Iterable
from typing import Any

from flmm_detseg.errors import ConfigError, DataError

MAX_PIXELS_VARIABLE = "FLMM_DETSEG_MAX_PIXELS"
# Enough for cameras of 100 megapixels; RGB and its decoder take about 8 bytes a pixel, so about 1 GB.
DEFAULT_MAX_PIXELS = 120_000_000
# float64 holds every integer up to here; no coordinate, area or count is larger.
LARGEST_NUMBER = float(2**53)
_LARGEST_ID = 2**63 - 1
# What tokenizers of well-known language models read as an image or as the end of a turn, wherever it stands in a text.
CONTROL_WORDS = (
    "<image>",
    "</s>",
    "<|endoftext|>",
    "<|im_end|>",
    "<|end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<eos>",
)

_short = reprlib.Repr()
_short.maxlevel, _short.maxstring, _short.maxother, _short.maxlong = 3, 80, 80, 40
_short.maxlist = _short.maxtuple = _short.maxdict = _short.maxset = _short.maxfrozenset = 8


class FieldError(DataError):
    """A value that cannot be used.

    Args:
        message: What is wrong with which field.
        kind: See below.

    Attributes:
        kind: Short name that reports count by, e.g. ``"bad text"``.
    """

    def __init__(self, message: str, kind: str = "malformed") -> None:
        super().__init__(message)
        self.kind = kind


def shown(value: Any) -> str:
    """A value as an error message shows it: at most some 100 characters, whatever it is."""
    try:
        return printable(_short.repr(value))
    except ValueError:  # an integer of more digits than Python writes
        return f"an integer of {value.bit_length()} bits" if isinstance(value, int) else type(value).__name__


def printable(text: str, limit: int = 2000) -> str:
    """A text that can be printed and stored as UTF-8: control characters and surrogates escaped, the middle cut out."""
    if len(text) > limit:
        text = f"{text[: limit * 2 // 3]} ... ({len(text)} characters) ... {text[-limit // 6 :]}"
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else _escaped(character) for character in text)


def _escaped(character: str) -> str:
    # A no-break space and other invisible characters are shown by their code; letters of any script are printable.
    return character.encode("unicode_escape").decode("ascii")


def is_number(value: Any) -> bool:
    """Whether a value is a finite number of a size that a coordinate can have; booleans and texts are not numbers."""
    if type(value) is float:
        return -LARGEST_NUMBER <= value <= LARGEST_NUMBER  # False for nan too
    is_real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return is_real and bool(-LARGEST_NUMBER <= value <= LARGEST_NUMBER)


def number(value: Any, what: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number within bounds (both included).

    Args:
        value: Anything a file gave.
        what: The field, for the error.
        low: Least value.
        high: Largest value.

    Returns:
        The number.

    Raises:
        FieldError: It is none.
    """
    if not is_number(value):
        raise FieldError(f"`{what}` is {shown(value)}, not a finite number")
    if not low <= value <= high:
        raise FieldError(f"`{what}` is {shown(value)}; it must be {low:g} to {high:g}")
    return float(value)


def integer(
    value: Any, what: str, low: int = -_LARGEST_ID, high: int = _LARGEST_ID, *, text: bool = False
) -> int:
    """An integer within bounds (both included): 7, or 7.0 as some tools write it; not 7.5, not True.

    Args:
        value: Anything a file gave.
        what: The field, for the error.
        low: Least value.
        high: Largest value.
        text: Take the decimal digits of a text as well (published files write some ids so).

    Returns:
        The integer.

    Raises:
        FieldError: It is none.
    """
    found: int | None = None
    is_real = isinstance(value, numbers.Real)  # by name: type checkers know no arithmetic of Real
    if isinstance(value, bool):
        pass
    elif isinstance(value, numbers.Integral):
        found = int(value)
    elif is_real:
        found = int(value) if math.isfinite(value) and value == int(value) else None
    elif text and isinstance(value, str) and len(value) <= 20:
        digits = value.strip()
        found = int(digits) if digits.isascii() and digits.removeprefix("-").isdigit() else None
    if found is None:
        raise FieldError(f"`{what}` is {shown(value)}, not an integer")
    if not low <= found <= high:
        raise FieldError(f"`{what}` is {shown(value)}; it must be {low} to {high}")
    return found


def flag(value: Any, what: str) -> bool:
    """True or false, written as a boolean, 0 or 1. The text "0" is none: ``bool("0")`` would be true.

    Args:
        value: Anything a file gave.
        what: The field, for the error.

    Returns:
        The boolean.

    Raises:
        FieldError: It is none.
    """
    if isinstance(value, numbers.Real) and value in (0, 1):
        return bool(value)
    raise FieldError(f"`{what}` is {shown(value)}; it must be 0 or 1 (or false, true)")


def identifier(value: Any, what: str) -> int | str:
    """An id: an integer of 64 bits (also 7.0), or a text, which stays a text.

    Args:
        value: Anything a file gave.
        what: The field, for the error.

    Returns:
        The id; 7 for 7.0.

    Raises:
        FieldError: It is neither.
    """
    if isinstance(value, str):
        return check_text(value, what)
    return integer(value, what)


def picture_size(height: Any, width: Any, what: str = "size") -> tuple[int, int]:
    """``(H, W)`` of a picture: integers from 1 (texts of digits too), no more pixels than :func:`max_pixels`.

    Args:
        height: Anything a file gave.
        width: Anything a file gave.
        what: The field, for the error.

    Returns:
        Two integers.

    Raises:
        FieldError: It is none.
    """
    size = (
        integer(height, "height" if what == "size" else f"{what} height", 1, text=True),
        integer(width, "width" if what == "size" else f"{what} width", 1, text=True),
    )
    if size[0] * size[1] > max_pixels():
        raise FieldError(f"{what}: {too_many_pixels(size)}", "too large")
    return size


def max_pixels() -> int:
    """Most pixels that a picture may have: 120 million, or what the variable FLMM_DETSEG_MAX_PIXELS says.

    Returns:
        The number.

    Raises:
        ConfigError: The variable holds no positive integer.
    """
    setting = os.environ.get(MAX_PIXELS_VARIABLE)
    if setting is None:
        return DEFAULT_MAX_PIXELS
    if not (setting.isascii() and setting.isdigit() and 0 < len(setting) < 16 and int(setting)):
        raise ConfigError(
            f"the environment variable {MAX_PIXELS_VARIABLE} is {setting!r}; give a number of pixels"
        )
    return int(setting)


def too_many_pixels(size: tuple[int, int]) -> str:
    """Message for a picture of size ``(H, W)`` over :func:`max_pixels`, with what to do about it."""
    return (
        f"{size[0]} x {size[1]} (H x W) are more than {max_pixels()} pixels (if the picture is really so large, scale "
        f"it down, or set the environment variable {MAX_PIXELS_VARIABLE})"
    )


def check_text(value: Any, what: str, *, empty: bool = True) -> str:
    """A text that can be stored and tokenized.

    Args:
        value: Anything a file or a caller gave.
        what: The field, for the error.
        empty: Accept a text of blanks only.

    Returns:
        The text as it is.

    Raises:
        FieldError: Not a text, half a surrogate pair in it (a cut emoji), a NUL character, or empty.
    """
    if not isinstance(value, str):
        raise FieldError(f"`{what}` is {shown(value)}, not a text", "bad text")
    if not empty and not value.strip():
        raise FieldError(f"`{what}` is empty", "bad text")
    if "\0" in value:
        raise FieldError(f"`{what}` holds a NUL character: {shown(value)}", "bad text")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise FieldError(
                f"`{what}` holds half a character (surrogate {value[error.start]!a} at {error.start}, as a cut emoji "
                f"leaves it): {shown(value)}",
                "bad text",
            ) from None
    return value


def check_words(value: Any, what: str, words: Iterable[str] = CONTROL_WORDS) -> str:
    """A text that a language model is to read or to learn: :func:`check_text`, and no control word in it.

    Readers know no tokenizer and use the well-known words, so that such a text is found before a training begins.

    Args:
        value: Anything a file or a caller gave.
        what: The field, for the error.
        words: The control words; an adapter's processor knows those of its own tokenizer.

    Returns:
        The text as it is.

    Raises:
        FieldError: See :func:`check_text`; kind ``"control word"``: one is in it.
    """
    text = check_text(value, what)
    if found := next((word for word in words if word in text), None):
        raise FieldError(
            f"`{what}` holds the control word {found!r}, which language models read as an image or as the end of a "
            "turn, not as text; remove it",
            "control word",
        )
    return text
