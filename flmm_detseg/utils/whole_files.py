"""Files that are complete or absent, also after a power cut, and JSON that every parser reads."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flmm_detseg.errors import DataError, RunError
from flmm_detseg.utils.lock import holding

# Error numbers of file systems that do not sync folders.
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EISDIR, errno.EACCES)


def sync(path: Path) -> None:
    """Syncs a file, or a folder and all it holds, to the disk: a rename may reach the disk before the content."""
    if path.is_dir():
        for inner in path.iterdir():
            sync(inner)
        _sync_entries(path)
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_entries(folder: Path) -> None:
    """Syncs the names in a folder to the disk, where the file system can: some network and FUSE ones cannot."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # the folder may be writable and not readable
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def put_in_place(part: Path, final: Path) -> None:
    """Renames a finished file or folder; after a power cut ``final`` is the old or the whole new one."""
    sync(part)
    os.replace(part, final)
    _sync_entries(final.parent)


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A folder to fill that takes its place when the block ends well; until then nothing is seen there.

    What a killed run left is removed when the same folder is made again.

    Args:
        final: Not there yet, or empty. Where a disk is mounted, which cannot be renamed, it is filled in place.

    Yields:
        The folder to write to, beside it (``.NAME.making``).

    Raises:
        RunError: Another program makes the same folder.
    """
    final = final.resolve()
    if os.path.ismount(final):
        yield final
        return
    final.parent.mkdir(parents=True, exist_ok=True)
    part = final.with_name(f".{final.name}.making")
    lock = final.with_name(f".{final.name}.lock")
    with holding(lock, f"making {final}"):
        if part.exists():
            shutil.rmtree(part)
        part.mkdir()
        yield part
        os.replace(part, final)  # takes the place of an empty folder, never of another one
        lock.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes a file in one step: a reader sees the old or the whole new one. Missing folders are made.

    A device or a pipe (``/dev/stdout``) is written to, not replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not (path.is_file() or path.is_dir()):
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
        return
    part = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    # A file name of the disk may hold bytes that are no UTF-8; the escape of such a half character is JSON's own.
    part.write_text(text, encoding="utf-8", errors="backslashreplace")
    put_in_place(part, path)


def write_bytes(path: Path, content: bytes) -> None:
    """:func:`write_text` of bytes, to a regular file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    part.write_bytes(content)
    put_in_place(part, path)


def write_json(path: Path, content: Any, *, indent: int | None = 1) -> None:
    """:func:`write_text` of :func:`dump_json`."""
    write_text(path, dump_json(content, indent=indent) + "\n")


def dump_json(content: Any, *, indent: int | None = None, ascii: bool = False) -> str:
    """JSON by the standard: Python's own writer would write ``NaN``, which no other parser reads.

    Args:
        content: Plain containers and values.
        indent: Blanks of a level; None for one line.
        ascii: Escape all other letters.

    Returns:
        The text, without a line break at the end.

    Raises:
        RunError: A number is NaN or infinite; names its place.
    """
    try:
        return json.dumps(content, indent=indent, ensure_ascii=ascii, allow_nan=False)
    except ValueError as error:
        place, value = next(_not_finite(content, ""), ("", error))
        raise RunError(
            f"the figure {place.lstrip('.') or '(the only one)'} is {value}, which JSON cannot hold; look for the "
            "first such number in the log, and check the checkpoint and its precision"
        ) from None


def read_json(path: Path, what: str) -> Any:
    """Reads a JSON file that a run of ours wrote.

    Args:
        path: The file.
        what: What it is and what to do without it, for the error.

    Returns:
        Its content.

    Raises:
        DataError: It is damaged; says so in place of the parser.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no text, no JSON
        raise DataError(f"{path} is damaged ({error}): {what}") from None


def _not_finite(content: Any, place: str) -> Iterator[tuple[str, float]]:
    if isinstance(content, float) and not math.isfinite(content):
        yield place, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _not_finite(value, f"{place}.{key}")
    elif isinstance(content, (list, tuple)):
        for index, value in enumerate(content):
            yield from _not_finite(value, f"{place}[{index}]")
