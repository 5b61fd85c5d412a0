"""Files that users send: looked at, read, and gone."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flmm_detseg.app.limits import Limits
from flmm_detseg.datasets.images import image_size, load_image
from flmm_detseg.errors import DataError
from flmm_detseg.visualization import canvas

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True, eq=False)
class Picture:
    """What a user works on.

    Attributes:
        name: Of the file, without folders.
        pixels: RGB uint8 ``[H, W, 3]``, at most ``Limits.side`` long.
        size: ``(H, W)`` of the file.
    """

    name: str
    pixels: np.ndarray
    size: tuple[int, int]


class Uploads:
    """The one folder into which files of users go. Nothing else is served from the disk, and nothing stays in it.

    Args:
        limits: Of a file.
    """

    # A file that nobody asked to read: the page was closed, or a client sent it and nothing more.
    ORPHAN_SECONDS = 120.0

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.folder = Path(tempfile.mkdtemp(prefix="flmm_detseg_app_")).resolve()

    def take(self, path: object) -> Picture:
        """Reads a picture, and deletes its file whatever comes of it.

        Args:
            path: Of a file in :attr:`folder`.

        Returns:
            The picture, reduced where it is larger than the limits want.

        Raises:
            DataError: It lies elsewhere, is no picture, or is too large; says so without a path of the server.
        """
        file = self._own(path)
        try:
            return read_picture(file, self._limits)
        finally:
            self.drop(file)
            self.sweep()

    def drop(self, path: object) -> None:
        """Deletes a file that was sent.

        Args:
            path: Of a file in :attr:`folder`.

        Raises:
            DataError: It lies elsewhere.
        """
        self._own(path).unlink(missing_ok=True)

    def _own(self, path: object) -> Path:
        if not isinstance(path, str | Path) or not str(path):
            raise DataError("no file came; choose a picture")
        file = Path(path)
        if not file.resolve().is_relative_to(self.folder) or file.is_dir():
            raise DataError(f"{file.name}: this is no file that was sent here; choose a picture")
        return file

    def sweep(self, older_than: float | None = None) -> int:
        """Deletes files that nobody asked to read, and the oldest beyond ``Limits.folder_bytes``.

        Args:
            older_than: Seconds; None takes :attr:`ORPHAN_SECONDS`.

        Returns:
            How many there were.
        """
        limit = time.time() - (self.ORPHAN_SECONDS if older_than is None else older_than)
        gone = total = 0
        files = []
        for file in self._walk(folders=False):
            try:
                status = file.lstat()
            except FileNotFoundError:  # another thread was here
                continue
            files.append((status.st_mtime, status.st_size, file))
        for modified, num_bytes, file in sorted(files, reverse=True):
            total += num_bytes
            if modified <= limit or total > self._limits.folder_bytes:
                try:
                    file.unlink()
                    gone += 1
                except FileNotFoundError:
                    continue
        for folder in self._walk(folders=True):
            try:
                if folder.stat().st_mtime <= limit:
                    folder.rmdir()
            except OSError:  # not empty, or gone
                continue
        return gone

    def _walk(self, *, folders: bool) -> Iterator[Path]:
        """Files, or folders without the topmost, the innermost first; what other threads delete meanwhile is left out.

        ``Path.rglob`` raises where a folder is gone before it is looked at, ``os.walk`` does not.
        """
        for place, inner, names in os.walk(self.folder, topdown=False):
            for name in inner if folders else names:
                yield Path(place, name)

    def close(self) -> None:
        """Deletes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def read_picture(file: Path, limits: Limits) -> Picture:
    """Reads a picture within limits.

    Args:
        file: On this machine.
        limits: Of its bytes, its pixels, and the side it is worked on at.

    Returns:
        The picture, reduced where it is larger than the limits want.

    Raises:
        DataError: It is no picture, or too large; names the file without its folder.
    """
    if file.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"{file.name}: only pictures are taken ({', '.join(ending[1:] for ending in SUFFIXES)})"
        )
    num_bytes = file.stat().st_size
    if num_bytes > limits.file_bytes:
        raise DataError(
            f"{file.name} has {num_bytes / 1e6:.1f} MB; at most {limits.file_bytes / 1e6:.0f} MB are taken"
        )
    try:
        size = image_size(file, "upload")
        if size[0] * size[1] > limits.pixels:
            raise DataError(
                f"{file.name} has {size[0]} x {size[1]} pixels (H x W); at most {limits.pixels / 1e6:.0f} million "
                "are taken. Scale it down."
            )
        pixels = load_image(file, "upload")
    except DataError as error:
        # The server's folders are nobody's business.
        raise DataError(str(error).replace(str(file), file.name)) from error
    wanted = canvas.readable_size(pixels.shape[:2], min_side=1, max_side=limits.side)
    return Picture(file.name, canvas.resize_image(pixels, wanted), (pixels.shape[0], pixels.shape[1]))
