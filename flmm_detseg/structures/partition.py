"""Which patches of an image belong together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BG, OBJ, PAD = 0, 1, 2


@dataclass(frozen=True, eq=False)
class PatchPartition:
    """Which patch of the vision tower belongs to which group.

    Attributes:
        group: ``[N]`` uint8 of ``BG``, ``OBJ`` or ``PAD``, raster order over ``rows x cols``.
        grid: ``(rows, cols)`` of the patches, ``rows * cols == N``.
        boxes: ``[n, 4]`` float32 xyxy in pixels of the original image: what made patches objects.
        dilate: Patches by which the object group was widened.
        source: What drew the boundary (name of a detector, "match", "difference", "none").
    """

    group: np.ndarray
    grid: tuple[int, int]
    boxes: np.ndarray
    dilate: int
    source: str

    def _indices(self, group: int) -> np.ndarray:
        return np.flatnonzero(self.group == group).astype(np.int64)

    @property
    def background(self) -> np.ndarray:
        """Raster indices of the background, int64, ascending."""
        return self._indices(BG)

    @property
    def objects(self) -> np.ndarray:
        """Raster indices of the object group, int64, ascending."""
        return self._indices(OBJ)

    @property
    def letterbox(self) -> np.ndarray:
        """Raster indices of the padding, int64, ascending."""
        return self._indices(PAD)

    @property
    def background_mask(self) -> np.ndarray:
        """``[N]`` bool, True on the background (without letterbox)."""
        return np.asarray(self.group == BG)
