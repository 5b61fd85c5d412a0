"""Reading annotation files with errors that name the file, the place and the remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flmm_detseg.datasets.policy import record_error
from flmm_detseg.errors import DataError
from flmm_detseg.utils.paths import find, places


def require_file(path: str | Path, what: str) -> Path:
    """Checks that a file is there.

    Args:
        path: The file.
        what: Its role, e.g. ``"refs file"``.

    Returns:
        The path, see :func:`~flmm_detseg.utils.paths.find`.

    Raises:
        DataError: It is missing or a folder.
    """
    path = find(path)
    if not path.is_file():
        raise DataError(
            f"{path}: {what} not found ({places(path)}). Check the path in the config; data/README.md shows the layout."
        )
    return path


def require_dir(path: str | Path, what: str) -> Path:
    """Checks that a folder is there (arguments, result and errors as :func:`require_file`)."""
    path = find(path)
    if not path.is_dir():
        raise DataError(
            f"{path}: {what} not found ({places(path)}). Check the path in the config; data/README.md shows the layout."
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


def require_keys(value: Any, keys: tuple[str, ...], file: str | Path, record: str = "") -> None:
    """Checks that a decoded value is a dict with some keys.

    Args:
        value: Anything a file gave.
        keys: What it must have.
        file: Where it came from.
        record: Place in the file; empty for the file's own content.

    Raises:
        RecordError: It is not; names file, record and the first missing key.
    """
    remedy = "Is this the right kind of file?"
    if not isinstance(value, dict):
        message = f"expected an object with {', '.join(keys)}, got {type(value).__name__}"
        raise record_error(str(file), record, message, remedy, "malformed")
    for key in keys:
        if key not in value:
            raise record_error(str(file), record, f"key `{key}` is missing", remedy, "malformed")


def require_list(value: Any, what: str, file: str | Path) -> list[Any]:
    """Checks that a decoded value is a list, and returns it.

    Raises:
        DataError: It is not; names file and ``what`` was expected, e.g. ``"narratives"``.
    """
    if not isinstance(value, list):
        raise DataError(
            f"{file}: expected a list of {what}, got {type(value).__name__}. Is this the right kind of file?"
        )
    return value
