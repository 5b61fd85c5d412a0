"""Reading annotation files with errors that name the file, the place and the remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flmm_detseg.errors import DataError


def require_file(path: str | Path, what: str) -> Path:
    """Checks that a file is there.

    Args:
        path: The file.
        what: Its role, e.g. ``"refs file"``.

    Returns:
        The path as :class:`Path`.

    Raises:
        DataError: It is missing or a folder.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(
            f"{path}: {what} not found. Check the path in the config; data/README.md shows the layout."
        )
    return path


def require_dir(path: str | Path, what: str) -> Path:
    """Checks that a folder is there (arguments, result and errors as :func:`require_file`)."""
    path = Path(path)
    if not path.is_dir():
        raise DataError(
            f"{path}: {what} not found. Check the path in the config; data/README.md shows the layout."
        )
    return path


def load_json(path: str | Path, what: str) -> Any:
    """Reads one JSON file.

    Args:
        path: The file.
        what: Its role, for the error.

    Returns:
        The decoded value.

    Raises:
        DataError: Missing, truncated or not JSON; names file, line and column.
    """
    path = require_file(path, what)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: {what} is not complete JSON (line {error.lineno} column {error.colno}: {error.msg}). "
            "Copy or download the file again."
        ) from error
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(
            f"{path}: {what} cannot be read ({error}). Copy or download the file again."
        ) from error


def require_keys(value: Any, keys: tuple[str, ...], where: str) -> None:
    """Checks that a decoded value is a dict with some keys.

    Raises:
        DataError: It is not; names the first missing key.
    """
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object with {', '.join(keys)}, got {type(value).__name__}.")
    for key in keys:
        if key not in value:
            raise DataError(f"{where}: key `{key}` is missing. Is this the right kind of file?")
