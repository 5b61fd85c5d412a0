"""A mask as COCO's run lengths on a grid that covers the image."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np

from flmm_detseg.errors import DataError
from flmm_detseg.utils.rle import encode_rle

# A character of COCO's text holds five bits of a count; longer counts are of no image.
_FIRST_CHAR, _BITS, _MAX_BITS = 48, 5, 40


@dataclass(frozen=True)
class MaskRuns:
    """Run lengths of a mask.

    Attributes:
        size: Rows and columns of the grid. Each cell covers the same share of the image, whatever its size.
        counts: COCO's compressed counts, as ``pycocotools`` writes them: runs of pixels outside and inside the mask in
            turn, column by column.
    """

    size: tuple[int, int]
    counts: str

    def __post_init__(self) -> None:
        """Raises DataError unless the runs cover the grid exactly; nothing of the grid's size is made."""
        _runs(self)

    @classmethod
    def of(cls, mask: np.ndarray, size: tuple[int, int]) -> MaskRuns:
        """Run lengths of a mask.

        Args:
            mask: bool ``[H, W]``.
            size: Rows and columns of the grid; a cell has the value of the pixel in its middle.

        Returns:
            Those of the cells.
        """
        cells = mask[np.ix_(*(_middles(own, length) for own, length in zip(size, mask.shape, strict=True)))]
        return cls(size, encode_rle(cells)["counts"])

    @classmethod
    def from_base64(cls, code: str, size: tuple[int, int]) -> MaskRuns:
        """Reads what :meth:`to_base64` wrote; takes any string.

        Args:
            code: Base64, with or without the ``=`` at its end.
            size: Rows and columns of the grid.

        Returns:
            The runs.

        Raises:
            DataError: This is no Base64, or not of runs that cover the grid.
        """
        code = code.rstrip("=")
        try:
            counts = base64.b64decode(code + "=" * (-len(code) % 4), validate=True).decode("ascii")
        except ValueError as error:
            raise DataError(f"run lengths: {code[:40]!r} is no Base64 of ASCII text ({error})") from error
        return cls(size, counts)

    def to_base64(self) -> str:
        """The counts in Base64: letters, digits, ``+``, ``/`` and ``=``."""
        return base64.b64encode(self.counts.encode("ascii")).decode("ascii")

    def draw(self, image_size: tuple[int, int]) -> np.ndarray:
        """The mask of an image.

        Args:
            image_size: ``(H, W)``; a pixel has the value of the cell in which its middle lies.

        Returns:
            bool ``[H, W]``.
        """
        rows, cols = self.size
        runs = _runs(self)
        cells = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(cols, rows).T
        return cells[np.ix_(*(_middles(own, length) for own, length in zip(image_size, self.size)))]


def _middles(num: int, length: int) -> np.ndarray:
    """In which of ``length`` cells the middle of each of ``num`` pixels along the same axis lies."""
    return (2 * np.arange(num) + 1) * length // (2 * num)


def _runs(mask: MaskRuns) -> list[int]:
    """Lengths of the runs; refuses what COCO's own reader takes as it comes."""
    (rows, cols), place = mask.size, f"run lengths of {mask.size[0]} x {mask.size[1]} cells"
    runs: list[int] = []
    value = bits = covered = 0
    for char in mask.counts:
        digit = ord(char) - _FIRST_CHAR
        if not 0 <= digit < 64 or bits >= _MAX_BITS:
            raise DataError(f"{place}: {mask.counts[:40]!r} are no compressed counts")
        value |= (digit & 31) << bits
        bits += _BITS
        if digit & 32:  # the count goes on
            continue
        if digit & 16:
            value -= 1 << bits
        if len(runs) > 2:  # from the fourth on, the difference to the last count of the same kind
            value += runs[-2]
        covered += value
        if value < 0 or covered > rows * cols:
            raise DataError(f"{place}: a run of {value}, {covered} in all")
        runs.append(value)
        value = bits = 0
    if bits or covered != rows * cols:
        raise DataError(f"{place}: they end after {covered} cells")
    return runs
