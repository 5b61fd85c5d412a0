"""From regions of the original image to groups of patches."""

from __future__ import annotations

import numpy as np

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.structures import PatchGrid
from flmm_detseg.structures.partition import BG, OBJ, PAD, PatchPartition


def patch_grid(grid: PatchGrid) -> tuple[int, int]:
    """``(rows, cols)`` of the one level of patches that cover the padded image.

    Args:
        grid: Geometry of the prepared image.

    Returns:
        Rows and columns.

    Raises:
        ConfigError: Several levels or newline tokens (LLaVA-NeXT): patches of different sizes overlap there.
    """
    if len(grid.levels) != 1 or grid.levels[0].newline_cols:
        raise ConfigError("the background cache needs an LMM with one square view of the image (LLaVA-1.5)")
    return grid.levels[0].rows, grid.levels[0].cols


def letterbox_tiles(grid: PatchGrid) -> np.ndarray:
    """Patches without a single pixel of the image, bool ``[rows, cols]``."""

    def padded(count: int, side: int, start: int, length: int) -> np.ndarray:
        edges = np.arange(count + 1) * side / count
        return (edges[1:] <= start) | (edges[:-1] >= start + length)

    rows, cols = patch_grid(grid)
    pad_rows = padded(rows, grid.padded_size[0], grid.pad_top, grid.resized_size[0])
    pad_cols = padded(cols, grid.padded_size[1], grid.pad_left, grid.resized_size[1])
    return pad_rows[:, None] | pad_cols[None, :]


def dilate_tiles(tiles: np.ndarray, distance: int) -> np.ndarray:
    """Widens a set of patches by so many patches in all eight directions; bool ``[rows, cols]``."""
    wide = tiles.copy()
    for axis in (0, 1):
        source = wide.copy()
        for step in range(1, distance + 1):
            for shift in (step, -step):
                moved = np.roll(source, shift, axis)
                edge = slice(0, step) if shift > 0 else slice(-step, None)
                moved[(edge, slice(None)) if axis == 0 else (slice(None), edge)] = False
                wide |= moved
    return wide


def partition_tiles(
    grid: PatchGrid,
    objects: np.ndarray,
    *,
    dilate: int = 0,
    source: str = "given",
    boxes_xyxy: np.ndarray | None = None,
) -> PatchPartition:
    """Groups from the set of object patches.

    Letterbox patches stay letterbox patches even where objects touch them: they show no image.

    Args:
        grid: Geometry of the image.
        objects: Patches that show objects, bool ``[rows, cols]`` or ``[N]``.
        dilate: Patches by which objects are widened: resampling filters and JPEG blocks carry a change over the
            edge of its box.
        source: Who found the objects.
        boxes_xyxy: What made patches objects, float ``[n, 4]``, original pixels.

    Returns:
        The group of each of the N patches.

    Raises:
        ConfigError: ``dilate`` is negative, or the LMM has no single square view.
        DataError: ``objects`` is of another size.
    """
    shape = patch_grid(grid)
    if dilate < 0:
        raise ConfigError(f"`dilate` is {dilate}; a number of patches, 0 or more")
    if objects.size != shape[0] * shape[1]:
        raise DataError(f"{objects.size} patches are marked, the image has {shape[0]} x {shape[1]}")
    group = np.full(shape, BG, dtype=np.uint8)
    group[dilate_tiles(objects.astype(bool).reshape(shape), dilate)] = OBJ
    group[letterbox_tiles(grid)] = PAD
    boxes = np.zeros((0, 4)) if boxes_xyxy is None else boxes_xyxy
    return PatchPartition(group.ravel(), shape, boxes.astype(np.float32).reshape(-1, 4), dilate, source)


def box_tiles(grid: PatchGrid, boxes_xyxy: np.ndarray) -> np.ndarray:
    """Patches that boxes touch, bool ``[rows, cols]``.

    Args:
        grid: Geometry of the image; boxes go through the same resize and padding as the pixels did.
        boxes_xyxy: float ``[n, 4]``, half-open, original pixels; parts outside of the image are left out.

    Returns:
        True where at least a part of a pixel in a box falls into the patch.

    Raises:
        DataError: A coordinate is no finite number.
    """
    rows, cols = patch_grid(grid)
    tiles = np.zeros((rows, cols), dtype=bool)
    boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    if not np.isfinite(boxes).all():
        raise DataError(f"boxes must be finite numbers, got {boxes[~np.isfinite(boxes).all(1)][0].tolist()}")
    height, width = grid.image_size
    boxes = boxes.clip(0, (width, height, width, height))
    scale_y, scale_x = grid.resized_size[0] / height, grid.resized_size[1] / width
    per_y, per_x = rows / grid.padded_size[0], cols / grid.padded_size[1]
    for x0, y0, x1, y1 in boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]:
        top, bottom = (per_y * (y * scale_y + grid.pad_top) for y in (y0, y1))
        left, right = (per_x * (x * scale_x + grid.pad_left) for x in (x0, x1))
        tiles[_cells(top, bottom), _cells(left, right)] = True
    return tiles


def _cells(start: float, end: float) -> slice:
    # Edges that meet a patch's edge but for rounding do not touch the next patch.
    return slice(int(np.floor(start + 1e-6)), int(np.ceil(end - 1e-6)))


def mask_tiles(grid: PatchGrid, mask: np.ndarray) -> np.ndarray:
    """Patches in which a mask has a pixel, bool ``[rows, cols]``.

    Args:
        grid: Geometry of the image.
        mask: bool ``[H, W]`` or ``[K, H, W]`` (their union) at original size.

    Returns:
        True where at least one pixel of the mask falls into the patch.

    Raises:
        DataError: The mask is of another size than the image.
    """
    if mask.ndim == 3:
        mask = np.any(mask, axis=0)
    if mask.shape != grid.image_size:
        raise DataError(f"mask of size {mask.shape}, image of size {grid.image_size}")
    rows, cols = patch_grid(grid)
    sums = np.pad(mask.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    y0, y1 = _source_ranges(rows, grid.padded_size[0], grid.pad_top, grid.resized_size[0], grid.image_size[0])
    x0, x1 = _source_ranges(
        cols, grid.padded_size[1], grid.pad_left, grid.resized_size[1], grid.image_size[1]
    )
    counts = sums[np.ix_(y1, x1)] - sums[np.ix_(y0, x1)] - sums[np.ix_(y1, x0)] + sums[np.ix_(y0, x0)]
    return counts > 0


def _source_ranges(
    count: int, padded: int, pad: int, resized: int, original: int
) -> tuple[np.ndarray, np.ndarray]:
    """Per patch row (or column) the first original pixel it shows and one past the last."""
    edges = ((np.arange(count + 1) * padded / count - pad) * original / resized).clip(0, original)
    start, end = np.floor(edges[:-1] + 1e-6).astype(int), np.ceil(edges[1:] - 1e-6).astype(int)
    return start, np.maximum(start, end)


def partition_like(
    grid: PatchGrid, background: np.ndarray, *, drop_letterbox: bool = False, source: str = "match"
) -> PatchPartition:
    """Groups by the mask of a stored background: its patches are background, all others objects.

    Args:
        grid: Geometry of the image.
        background: bool ``[N]``.
        drop_letterbox: Padding outside of the stored background is letterbox, not objects.
        source: Name of what drew the boundary.

    Returns:
        The group of each of the N patches; no boxes.
    """
    shape = patch_grid(grid)
    group = np.full(shape, OBJ, dtype=np.uint8).ravel()
    if drop_letterbox:
        group[letterbox_tiles(grid).ravel()] = PAD
    group[background] = BG
    return PatchPartition(group, shape, np.zeros((0, 4), np.float32), 0, source)
