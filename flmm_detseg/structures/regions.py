"""Regions of an image that a user points at: a point, a box or a mask."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flmm_detseg.errors import DataError
from flmm_detseg.structures.grid import PatchGrid


@dataclass(frozen=True)
class Region:
    """A region of one image, in its original pixels; one of the three is given.

    Attributes:
        point_xy: ``(x, y)``.
        box_xyxy: ``(x0, y0, x1, y1)``, half-open.
        mask: bool ``[H, W]``.
        image: Which image of the prompt it lies in: 0 is :attr:`Sample.image`, 1 the first of ``more_images``.

    Raises:
        DataError: None or several are given, or one that is no point, box or mask.
    """

    point_xy: tuple[float, float] | None = None
    box_xyxy: tuple[float, float, float, float] | None = None
    mask: np.ndarray | None = None
    image: int = 0

    def __post_init__(self) -> None:
        given = [name for name in ("point_xy", "box_xyxy", "mask") if getattr(self, name) is not None]
        if len(given) != 1:
            raise DataError(
                f"a region is a point, a box or a mask; given: {', '.join(given) or 'none of point_xy, box_xyxy, mask'}"
            )
        if isinstance(self.image, bool) or not isinstance(self.image, numbers.Integral) or self.image < 0:
            raise DataError(
                f"a region's `image` is {self.image!r}; a number of the prompt's images is needed: 0, 1, ..."
            )
        object.__setattr__(self, "image", int(self.image))
        for name, count in (("point_xy", 2), ("box_xyxy", 4)):
            if (values := getattr(self, name)) is not None:
                object.__setattr__(self, name, _numbers(values, name, count))
        if self.box_xyxy is not None:
            x0, y0, x1, y1 = self.box_xyxy
            if not (x0 < x1 and y0 < y1):
                raise DataError(
                    f"a region's box is {self.box_xyxy}; (x0, y0, x1, y1) with x0 < x1 and y0 < y1 is needed"
                )
        if self.mask is not None and (
            not isinstance(self.mask, np.ndarray) or self.mask.ndim != 2 or self.mask.dtype != np.bool_
        ):
            kind = (
                f"{self.mask.dtype} {self.mask.shape}"
                if isinstance(self.mask, np.ndarray)
                else type(self.mask)
            )
            raise DataError(f"a region's mask is {kind}; a bool array (H, W) is needed")
        if self.mask is not None:  # torch reads no flipped view
            object.__setattr__(self, "mask", np.ascontiguousarray(self.mask))

    @classmethod
    def of(cls, value: object, image: int = 0) -> Region:
        """A region from what a caller or a file gives.

        Args:
            value: A region, ``(x, y)``, ``(x0, y0, x1, y1)`` or a bool mask ``[H, W]``.
            image: See the class; a region has its own.

        Returns:
            The region.

        Raises:
            DataError: It is none of these.
        """
        if isinstance(value, Region):
            return value
        if isinstance(value, np.ndarray) and value.ndim == 2:
            return cls(mask=value, image=image)
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if isinstance(value, list | tuple) and len(value) in (2, 4):
            return (
                cls(point_xy=tuple(value), image=image)
                if len(value) == 2
                else cls(box_xyxy=tuple(value), image=image)
            )
        raise DataError(
            f"a region is {value!r:.80}; (x, y), (x0, y0, x1, y1) or a bool mask (H, W) of its image is needed"
        )

    @classmethod
    def stroke(
        cls,
        points_xy: Sequence[Sequence[float]] | np.ndarray,
        width: float,
        image_size: tuple[int, int],
        image: int = 0,
    ) -> Region:
        """The mask that a pen draws: a scribble, an outline, or the disc around a single point.

        Args:
            points_xy: ``[n, 2]``, n at least 1, the pen's way in pixels; may leave the image.
            width: Of the pen in pixels. The pixels that it passes through are drawn, however thin it is.
            image_size: ``(H, W)``.
            image: See the class.

        Returns:
            A region with the mask, which is empty where the pen never comes near the image.

        Raises:
            DataError: The points or the width are none.
        """
        try:
            points = np.asarray(points_xy, dtype=np.float64)
        except (TypeError, ValueError):
            points = np.zeros(0)
        if points.ndim != 2 or not len(points) or points.shape[1] != 2 or not np.isfinite(points).all():
            raise DataError(
                f"a stroke's points are {points_xy!r:.80}; finite numbers [n, 2], n > 0, are needed"
            )
        if not (math.isfinite(width) and width > 0):
            raise DataError(f"a stroke's width is {width!r}; a positive number of pixels is needed")
        mask = np.zeros(image_size, bool)
        # The centre of the pixel that a place lies in is half of a pixel's diagonal away at most.
        reach = max(width / 2, math.sqrt(0.5))
        for start, end in zip(points, [*points[1:], points[-1]], strict=True):
            low = np.floor(np.minimum(start, end) - reach).clip(0, image_size[::-1]).astype(int)
            high = np.ceil(np.maximum(start, end) + reach).clip(0, image_size[::-1]).astype(int)
            across, down = (np.arange(low[k], high[k]) + 0.5 - start[k] for k in (0, 1))
            way = end - start
            done = (down[:, None] * way[1] + across * way[0]) / max(way @ way, 1e-12)
            done = done.clip(0, 1)
            away = np.hypot(down[:, None] - done * way[1], across - done * way[0])
            mask[low[1] : high[1], low[0] : high[0]] |= away <= reach
        return cls(mask=mask, image=image)

    def check(self, sizes: list[tuple[int, int]]) -> None:
        """Checks that it is inside one of these images.

        Args:
            sizes: Original ``(H, W)`` of the prompt's images.

        Raises:
            DataError: There is no such image, or nothing of the region lies in it.
        """
        if self.image >= len(sizes):
            raise DataError(
                f"a region names image {self.image}, the prompt has {len(sizes)} (0 is the first)"
            )
        height, width = sizes[self.image]
        where = f"image {self.image} of {height} x {width} pixels (H x W)"
        if self.mask is not None:
            if self.mask.shape != (height, width):
                raise DataError(
                    f"a region's mask is {self.mask.shape}, of {where}; it must have the image's size"
                )
            if not self.mask.any():
                raise DataError(f"a region's mask, of {where}, is empty")
            return
        if self.point_xy is not None:
            x, y = self.point_xy
            if not (0 <= x <= width and 0 <= y <= height):
                raise DataError(f"a region's point {self.point_xy} lies outside of {where}")
        if self.box_xyxy is not None:
            x0, y0, x1, y1 = self.box_xyxy
            if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
                raise DataError(f"a region's box {self.box_xyxy} lies outside of {where}")

    def spread(self, places: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Points of the region from points of a square: equal parts of its area become equal parts of the region's.

        Args:
            places: float64 ``[n, 2]`` in [0, 1).
            image_size: ``(H, W)`` of its image, which :meth:`check` saw.

        Returns:
            float64 ``[n, 2]``, ``(x, y)`` in pixels. A point is the pixel that it lies in; a mask its pixels, row after
            row.
        """
        across, down = places.unbind(-1)
        if self.mask is None:
            left, top, right, bottom = self._inside(image_size)
            return torch.stack([left + across * (right - left), top + down * (bottom - top)], -1)
        pixels = torch.from_numpy(self.mask)
        counts, cols = pixels.sum(1), pixels.nonzero()[:, 1]
        ends = counts.cumsum(0)
        passed = down * len(cols)
        rows = torch.searchsorted(ends, passed, right=True)
        before, across = (ends - counts)[rows], across * counts[rows]
        steps = across.floor()
        x = cols[before + steps.long()] + across - steps
        return torch.stack([x, rows + (passed - before) / counts[rows]], -1)

    def _inside(self, image_size: tuple[int, int]) -> tuple[float, float, float, float]:
        """What of a point's pixel or of a box lies in the image."""
        height, width = image_size
        left, top, right, bottom = self.box_xyxy or _around(self.point_xy or (0.0, 0.0), image_size)
        return max(left, 0), max(top, 0), min(right, width), min(bottom, height)

    def weights(self, grid: PatchGrid) -> Tensor:
        """The share of each cell of the vision maps that the region covers.

        Args:
            grid: Geometry of its image, which :meth:`check` saw.

        Returns:
            float32 ``[rows, cols]`` of :attr:`PatchGrid.view_grid`, sum 1.
        """
        (rows, cols), (height, width) = grid.view_grid, grid.image_size
        y0, x0, y1, x1 = grid.view_fractions
        if self.mask is not None:
            down, across = _cells(rows, y0, y1, height), _cells(cols, x0, x1, width)
            pixels = torch.from_numpy(self.mask).double()
            found = _overlap(down, torch.arange(height)) @ pixels @ _overlap(across, torch.arange(width)).T
        else:
            left, top, right, bottom = self._inside((height, width))
            found = torch.outer(
                _part(_cells(rows, y0, y1, height), top, bottom),
                _part(_cells(cols, x0, x1, width), left, right),
            )
        return (found / found.sum()).float()


def _numbers(values: object, name: str, count: int) -> tuple[float, ...]:
    try:
        # Texts and booleans would become numbers, too.
        found = tuple(
            math.nan if isinstance(value, str | bytes | bool | np.bool_) else float(value)
            for value in values  # type: ignore[attr-defined]  # else caught below
        )
    except (TypeError, ValueError, OverflowError):
        found = ()
    if len(found) != count or not all(map(math.isfinite, found)):
        raise DataError(f"a region's `{name}` is {values!r:.80}; {count} finite numbers are needed")
    return found


def _around(point_xy: tuple[float, float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The pixel that a point lies in."""
    x, y = min(math.floor(point_xy[0]), size[1] - 1), min(math.floor(point_xy[1]), size[0] - 1)
    return x, y, x + 1, y + 1


def _cells(count: int, start: float, end: float, length: int) -> Tensor:
    """Borders of the cells of one axis in pixels of the image, float64 ``[count + 1]``; outside of it is padding."""
    borders = torch.arange(count + 1, dtype=torch.float64) / count
    return (borders - start) / (end - start) * length


def _part(borders: Tensor, low: float, high: float) -> Tensor:
    """Overlap of ``low`` to ``high`` with each cell, float64 ``[count]``."""
    return (borders[1:].clamp(max=high) - borders[:-1].clamp(min=low)).clamp(min=0)


def _overlap(borders: Tensor, pixels: Tensor) -> Tensor:
    """Overlap of each pixel with each cell, float64 ``[count, pixels]``."""
    ends = torch.minimum(borders[1:, None], pixels[None] + 1.0)
    return (ends - torch.maximum(borders[:-1, None], pixels[None].double())).clamp(min=0)
