"""Frames of a stream to choose from: a folder that was named at the start, or a screen that is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from flmm_detseg.app.limits import Limits
from flmm_detseg.app.uploads import SUFFIXES, Picture, read_picture
from flmm_detseg.errors import DataError
from flmm_detseg.utils.values import shown

_MOST = 500


class Frames:
    """Pictures by name. A name that is not among :attr:`names` is never looked for on the disk.

    Args:
        read: By name, in the order of the stream, what makes the picture.
        note: See the attribute.

    Attributes:
        note: What is to be said of them, in a sentence; empty where there is nothing.
    """

    def __init__(self, read: Mapping[str, Callable[[], Picture]], note: str = "") -> None:
        self._read = dict(read)
        self.note = note

    @property
    def names(self) -> list[str]:
        """In the order of the stream."""
        return list(self._read)

    def picture(self, name: object) -> Picture:
        """One frame.

        Args:
            name: One of :attr:`names`.

        Returns:
            The picture.

        Raises:
            DataError: There is no such frame, or it cannot be read.
        """
        if not isinstance(name, str) or name not in self._read:
            raise DataError(f"there is no frame {shown(name)}; choose one of the list")
        return self._read[name]()


def frames_of_folder(folder: Path, limits: Limits) -> Frames:
    """The pictures that lie in a folder, in the order of their names; folders within it are not looked into.

    Of many the first 500 are taken, and the frames' note says so.

    Args:
        folder: On the server, named by who started it.
        limits: Of a picture.

    Returns:
        The frames.

    Raises:
        DataError: It holds no picture.
    """
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    files = [file for file in there if file.suffix.lower() in SUFFIXES and file.is_file()]
    if not files:
        raise DataError(f"--frames {folder} holds no picture ({', '.join(SUFFIXES)})")
    note = ""
    if len(files) > _MOST:
        note = (
            f"The folder has {len(files)} pictures; the first {_MOST} in the order of their names are here, "
            f"{len(files) - _MOST} are left out."
        )
    return Frames({file.name: partial(read_picture, file, limits) for file in files[:_MOST]}, note)


def drawn_screen(num_frames: int = 8) -> Frames:
    """A screen of TinyWorld with a clock, whose background stays: something to ask about at once.

    Args:
        num_frames: How many.

    Returns:
        The frames.
    """
    from flmm_detseg.datasets.tinyworld.streams import make_stream

    items = make_stream("screen", 0, 0, num_frames)
    pictures = [
        Picture(f"screen {item.frame + 1}", item.image, (item.image.shape[0], item.image.shape[1]))
        for item in items
    ]
    return Frames({picture.name: partial(_same, picture) for picture in pictures})


def _same(picture: Picture) -> Picture:
    return picture
