"""Reading annotation files with errors that name the file, the place and the remedy."""

from __future__ import annotations

import codecs
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from flmm_detseg.datasets.policy import record_error
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.utils.paths import find, places
from flmm_detseg.utils.values import FieldError, check_words, printable, shown

# Longer integers are refused by int() (a guard against quadratic time), wherever in the file they are.
_MOST_DIGITS = 4000
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG", ".bmp", ".webp")
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def is_file(path: str | Path) -> bool:
    """Whether there is a file of that name; also for names that no file can have (too long, NUL in them)."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def is_dir(path: str | Path) -> bool:
    """As :func:`is_file`, for folders."""
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False


def existing_file(folder: str | Path, value: Any, what: str) -> Path:
    """The file that a field of a record names.

    Args:
        folder: Where relative names start.
        value: The field's value, anything.
        what: Name of the field or role of the file, for the error, e.g. ``"image"``.

    Returns:
        Its path, ``folder / value``.

    Raises:
        FieldError: Not a text, the picture itself instead of its name (a data URI), or no such file (kind
            ``"missing image"``, also for mask and map files).
    """
    if not isinstance(value, str) or not value.strip():
        raise FieldError(f"`{what}` is {shown(value)}, not the name of a file")
    if value[:5].lower() == "data:":
        message = f"`{what}` holds the data itself ({shown(value)}, {len(value)} characters), not the name of a file"
        raise FieldError(f"{message}; save it as a file", "missing image")
    if value.split("://")[0].lower() in ("http", "https"):
        raise FieldError(f"`{what}` is a web address ({shown(value)}); download it first", "missing image")
    path = Path(folder) / value
    if not is_file(path):
        name = printable(str(path), 300)
        raise FieldError(f"{what} {name} not found", "missing image")
    return path


def image_beside(folder: Path, stem: str) -> Path | None:
    """The image of a name without its suffix (one of :data:`IMAGE_SUFFIXES`) in a folder; None: there is none."""
    found = (folder / (stem + suffix) for suffix in IMAGE_SUFFIXES)
    return next((path for path in found if is_file(path)), None)


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
    if not is_file(path):
        raise DataError(
            f"{printable(str(path))}: {what} not found ({places(path)}). Check the path in the config; "
            "data/README.md shows the layout."
        )
    return path


def require_dir(path: str | Path, what: str) -> Path:
    """Checks that a folder is there (arguments, result and errors as :func:`require_file`)."""
    path = find(path)
    if not is_dir(path):
        raise DataError(
            f"{printable(str(path))}: {what} not found ({places(path)}). Check the path in the config; "
            "data/README.md shows the layout."
        )
    return path


def decode_text(data: bytes, fallback: str | None = None) -> str:
    """Decodes UTF-8, with or without a byte order mark (Windows tools write one).

    Args:
        data: Content of a file.
        fallback: What to try where it is not UTF-8, for published files that are known to be so; None: nothing.

    Returns:
        The text, without the mark.

    Raises:
        FieldError: Another encoding; says where, and what to do.
    """
    if data.startswith(_UTF_16):
        raise FieldError("it is UTF-16 text; save it as UTF-8", "bad encoding")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if fallback is not None:
            with suppress(UnicodeDecodeError):
                return data.decode(fallback)
        line = data.count(b"\n", 0, error.start) + 1
        where = (
            f"byte {data[error.start]:#04x} in line {line}" if line > 1 else f"byte {data[error.start]:#04x}"
        )
        raise FieldError(f"it is not UTF-8 text ({where}); save it as UTF-8", "bad encoding") from None


def read_text(path: str | Path, what: str) -> str:
    """Reads a text file, UTF-8 with or without a byte order mark.

    Args:
        path: The file.
        what: Its role, for the error.

    Returns:
        The text, without the mark.

    Raises:
        DataError: Missing, unreadable or of another encoding.
    """
    path = require_file(path, what)
    try:
        return decode_text(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: {what} cannot be read ({error}). Check its permissions.") from error
    except FieldError as error:
        raise DataError(f"{path}: {what} cannot be read: {error}.") from error


def read_lines(path: str | Path, what: str) -> list[str]:
    """Lines of a text file (a list of names) that are not blank, without surrounding blanks; see :func:`read_text`."""
    return [line.strip() for line in read_text(path, what).splitlines() if line.strip()]


def parse_json(text: str) -> Any:
    """Decodes JSON. Integers of thousands of digits become infinite, so that the check of their field names them.

    Args:
        text: Content of a file.

    Returns:
        Plain containers, texts, numbers, booleans and None.

    Raises:
        FieldError: Not JSON, or nested too deep.
    """
    try:
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            raise
        except ValueError:  # int() refuses more than 4300 digits
            return json.loads(text, parse_int=_parse_int)
    except json.JSONDecodeError as error:
        message = f"line {error.lineno} column {error.colno}: {error.msg}"
        raise FieldError(message, "broken JSON") from error
    except RecursionError as error:
        raise FieldError("its lists or objects are nested too deep", "broken JSON") from error


def _parse_int(digits: str) -> int | float:
    return int(digits) if len(digits) <= _MOST_DIGITS else float(digits)


def parse_line(line: bytes) -> dict[str, Any]:
    """Decodes one line of a JSONL file.

    Args:
        line: With or without its line break.

    Returns:
        The object's fields.

    Raises:
        FieldError: Not UTF-8, not JSON, or not an object (kind ``"broken JSON"``).
    """
    try:
        entry = parse_json(decode_text(line))
    except FieldError as error:
        raise FieldError(f"not a complete JSON object ({error})", "broken JSON") from error
    if not isinstance(entry, dict):
        raise FieldError(f"expected a JSON object, got {type(entry).__name__}", "broken JSON")
    return entry


def load_json(path: str | Path, what: str) -> Any:
    """Reads one JSON file.

    Args:
        path: The file.
        what: Its role, for the error.

    Returns:
        The decoded value.

    Raises:
        DataError: Missing, truncated, of another encoding or not JSON; names file, line and column.
    """
    text = read_text(path, what)
    try:
        return parse_json(text)
    except FieldError as error:
        raise DataError(
            f"{path}: {what} is not complete JSON ({error}). Copy or download the file again, or check what wrote it."
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

    Args:
        value: What was decoded.
        what: Its name, for the error.
        file: Where it stands, for the error.

    Returns:
        ``value`` itself.

    Raises:
        DataError: It is not; names file and ``what`` was expected, e.g. ``"narratives"``.
    """
    if not isinstance(value, list):
        raise DataError(
            f"{file}: expected a list of {what}, got {type(value).__name__}. Is this the right kind of file?"
        )
    return value


def list_of(value: Any, what: str) -> list[Any]:
    """Checks that a field is a list, and returns it.

    Args:
        value: What was decoded.
        what: The field, for the error.

    Returns:
        ``value`` itself.

    Raises:
        FieldError: It is not.
    """
    if not isinstance(value, list):
        raise FieldError(f"`{what}` is {shown(value)}, not a list")
    return value


def optional_words(value: Any, what: str) -> str | None:
    """Words that a record may leave out (None); see :func:`~flmm_detseg.utils.values.check_words`."""
    return None if value is None else check_words(value, what)


def words_argument(value: str | None, what: str) -> str | None:
    """A reader's argument that goes to the language model with every record; None: not given.

    Args:
        value: As given in a config.
        what: The argument's name, for the error.

    Returns:
        The text, checked; None for None.

    Raises:
        ConfigError: See :func:`~flmm_detseg.utils.values.check_words`.
    """
    try:
        return optional_words(value, what)
    except FieldError as error:
        raise ConfigError(str(error)) from error
