"""Keeps tools from overwriting what they read, such as photos or annotations."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from stat import S_ISDIR

from flmm_detseg.errors import ConfigError
from flmm_detseg.utils.paths import find


def refuse_overwrite(out: str | Path, inputs: Iterable[str | Path | None]) -> Path:
    """Refuses to write over a file that is read.

    Args:
        out: File to write.
        inputs: Files that are read (None: none), under whatever names; links are followed.

    Returns:
        ``out``.

    Raises:
        ConfigError: It is one of them, or a folder.
    """
    out = Path(out)
    try:
        there = out.stat()
    except (OSError, ValueError):  # nothing is there to be lost
        return out
    if S_ISDIR(there.st_mode):
        raise ConfigError(f"{out} is a folder, and a file is to be written: name the file, too")
    for item in inputs:
        try:
            same = item is not None and _identity(find(item)) == (there.st_dev, there.st_ino)
        except (OSError, ValueError):
            continue
        if same:
            raise ConfigError(
                f"{out} is an input ({item}): the result would replace it. Write to another file or folder"
            )
    return out


def refuse_folder_of_inputs(folder: str | Path, inputs: Iterable[str | Path]) -> Path:
    """Refuses to write pictures of our own naming into a folder that pictures are read from.

    Args:
        folder: Where pictures are to go.
        inputs: Files that are read.

    Returns:
        ``folder``.

    Raises:
        ConfigError: An input lies in it.
    """
    folder = Path(folder)
    if folder.exists():
        inside = {find(item).parent for item in inputs}
        if any(parent.exists() and parent.samefile(folder) for parent in inside):
            raise ConfigError(
                f"{folder} holds images that are read: results could replace them. Write to another folder"
            )
    return folder


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino
