"""Reads pickles that hold plain data only; anything that could run code is refused before it is imported."""

from __future__ import annotations

import codecs
import io
import pickle
from pathlib import Path
from typing import Any

from flmm_detseg.datasets.files import require_file
from flmm_detseg.errors import DataError
from flmm_detseg.utils.values import shown


def _bytearray(*arguments: Any) -> bytearray:
    # bytearray(10**10) of a few bytes' pickle would be 10 GB
    if arguments and isinstance(arguments[0], int):
        raise pickle.UnpicklingError("it makes a bytearray of a number")
    return bytearray(*arguments)


# Containers without an opcode of their own in old protocols; building one runs no foreign code.
_ALLOWED = {
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "bytearray"): _bytearray,
}


# The unpickler in Python, not the one in C: that one allocates what a damaged file asks for (a memo of 2**31 entries)
# and is killed, where this one notices that the bytes are missing.
class _PlainDataUnpickler(pickle._Unpickler):
    dispatch = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[(module, name)]
        except KeyError:
            raise pickle.UnpicklingError(f"it names `{module}.{name}`, which is not plain data") from None

    def load_bytearray(self) -> None:
        raise pickle.UnpicklingError("it holds a bytearray, which is not plain data")

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray  # type: ignore[assignment]  # typed by the parent class


def _as_latin_1(error: UnicodeError) -> tuple[str, int]:
    """Bytes of Python-2 texts that are no UTF-8, for :func:`codecs.register_error`."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.end].decode("latin-1"), error.end


codecs.register_error("flmm_detseg.latin_1", _as_latin_1)


def load_plain_pickle(path: str | Path, what: str = "pickle file") -> Any:
    """Reads a pickle of lists, tuples, dicts, sets, strings, bytes, numbers, booleans and None.

    Byte strings of Python 2, which are texts there, are decoded as UTF-8, what is none of it as Latin-1.

    Args:
        path: The file, for example ``refs(unc).p`` of RefCOCO.
        what: Its role, for the error.

    Returns:
        The decoded value.

    Raises:
        DataError: Missing, truncated, or it refers to any class or function (which could run code).
    """
    path = require_file(path, what)
    try:
        file = io.BytesIO(path.read_bytes())
        return _PlainDataUnpickler(file, encoding="utf-8", errors="flmm_detseg.latin_1").load()
    except OSError as error:
        raise DataError(f"{path}: {what} cannot be read ({error}). Check its permissions.") from error
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path}: {what} refused: {error}. Use the published file, or convert it to lists and dicts."
        ) from error
    except Exception as error:  # a damaged pickle can fail in any opcode, with nearly any exception type
        raise DataError(
            f"{path}: {what} is not a complete pickle ({type(error).__name__}: {shown(str(error))}). "
            "Copy or download the file again."
        ) from error
