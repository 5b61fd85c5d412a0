"""Reads pickles that hold plain data only; anything that could run code is refused before it is imported."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from flmm_detseg.datasets.files import require_file
from flmm_detseg.errors import DataError

# Containers without an opcode of their own in old protocols; building one runs no foreign code.
_ALLOWED = {
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "bytearray"): bytearray,
}


class _PlainDataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[(module, name)]
        except KeyError:
            raise pickle.UnpicklingError(f"it names `{module}.{name}`, which is not plain data") from None


def load_plain_pickle(path: str | Path, what: str = "pickle file") -> Any:
    """Reads a pickle of lists, tuples, dicts, sets, strings, bytes, numbers, booleans and None.

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
        with path.open("rb") as file:
            return _PlainDataUnpickler(file).load()
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path}: {what} refused: {error}. Use the published file, or convert it to lists and dicts."
        ) from error
    except Exception as error:  # a damaged pickle can fail in any opcode, with nearly any exception type
        raise DataError(
            f"{path}: {what} is not a complete pickle ({type(error).__name__}: {error}). "
            "Copy or download the file again."
        ) from error
