"""Where an LMM looked while it read or wrote pieces of a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from flmm_detseg.errors import DataError
from flmm_detseg.inference.samples import Span
from flmm_detseg.structures import PatchGrid
from flmm_detseg.utils.values import shown
from flmm_detseg.visualization import canvas


@dataclass(frozen=True)
class AttentionMaps:
    """Attention of K pieces of a text (phrases, or words of an answer) on the image.

    A row of attention is the softmax over everything a token may look at, cut to the image: its sum is what the image
    got, and below 1. A piece of several tokens has the mean of their rows.

    Attributes:
        image: RGB, uint8, ``[H, W, 3]``, as it was read.
        text: What was read or written.
        pieces: K texts.
        spans: Per piece its character ranges ``(start, end)`` in the text, half-open.
        layers: Decoder layers that were read, ascending.
        heads: Heads that were read, ascending.
        levels: Maps that each head gives, coarse first: families that see an image twice (whole and in tiles) have 2.
        grid: Geometry of the maps; ``grid.crop_window`` cuts padding away.
        stack_of: Gives the rows of piece i, ``[levels * layers * heads, rows, cols]`` float32.
    """

    image: np.ndarray = field(repr=False)
    text: str
    pieces: tuple[str, ...]
    spans: tuple[tuple[Span, ...], ...]
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    levels: int
    grid: PatchGrid = field(repr=False)
    stack_of: Callable[[int], Tensor] = field(repr=False)

    # Names of the axes of :meth:`rows`.
    DIMS: ClassVar[tuple[str, ...]] = ("level", "layer", "head", "row", "col")

    def __len__(self) -> int:
        """K."""
        return len(self.pieces)

    def rows(self, index: int, *, layer: int | None = None, head: int | None = None) -> np.ndarray:
        """Attention of one piece, by the labels of its axes (:attr:`DIMS`).

        Args:
            index: Which piece.
            layer: One of :attr:`layers`; None: all, in their order.
            head: One of :attr:`heads`; None: all.

        Returns:
            float32 ``[levels, layers, heads, rows, cols]`` in [0, 1] on the output grid, padding included; the axis
            of a label that was given is left out.

        Raises:
            DataError: There is no such piece, or the layer or head was not read.
        """
        stack = self._stack(index)
        found = stack.reshape(self.levels, len(self.layers), len(self.heads), *stack.shape[1:])
        if head is not None:
            found = found[:, :, _place(self.heads, head, "head")]
        if layer is not None:
            found = found[:, _place(self.layers, layer, "layer")]
        return found.numpy()

    def _stack(self, index: int) -> Tensor:
        if not -len(self) <= index < len(self):
            raise DataError(f"piece {index} does not exist; the text has {len(self)} (0 to {len(self) - 1})")
        return self.stack_of(index % len(self)).detach().float().cpu()

    @property
    def size(self) -> tuple[int, int]:
        """``(rows, cols)`` of a map without padding."""
        down, across = self.grid.crop_window(self.grid.output_grid)
        return down.stop - down.start, across.stop - across.start

    def map(
        self,
        index: int,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        *,
        relative: bool = False,
    ) -> np.ndarray:
        """Mean attention of one piece on the image, on the grid of its tokens.

        Args:
            index: Which piece.
            layers: Of :attr:`layers`; None: all.
            heads: Of :attr:`heads`; None: all.
            relative: Divide by the mean over all pieces. Some cells are looked at whatever a text says; what is left is
                what the piece looks at more than the others do.

        Returns:
            float32 ``[rows, cols]``, padding cut away.

        Raises:
            DataError: There is no such piece, or a layer or head was not read.
        """
        places = _places(self.layers, layers, "layer")
        found = self.by_layer([index], heads)[0, places].mean(0)
        if relative:
            others = self.by_layer(None, heads)[:, places].mean(1)
            found = found / np.maximum(others.mean(0), 1e-12)
        return found

    def by_layer(self, pieces: Sequence[int] | None = None, heads: Sequence[int] | None = None) -> np.ndarray:
        """Mean over heads and levels, layer by layer.

        Args:
            pieces: Which pieces; None: all.
            heads: Of :attr:`heads`; None: all.

        Returns:
            float32 ``[pieces, layers, rows, cols]``, padding cut away.

        Raises:
            DataError: There is no such piece, none at all, or a head was not read.
        """
        window = self.grid.crop_window(self.grid.output_grid)
        places = _places(self.heads, heads, "head")
        chosen = range(len(self)) if pieces is None else pieces
        if not len(chosen):
            raise DataError(f"there is no piece of {self.text!r:.80} to show")
        found = []
        for index in chosen:
            rows = self.rows(index)
            found.append(rows[:, :, places].mean(axis=(0, 2))[(slice(None), *window)])
        return np.stack(found)

    def heat_map(
        self,
        index: int,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        *,
        relative: bool = False,
    ) -> np.ndarray:
        """:meth:`map` in pixels of the original image.

        Args:
            index: Which piece.
            layers: See :meth:`map`.
            heads: See :meth:`map`.
            relative: See :meth:`map`.

        Returns:
            float32 ``[H, W]``, bilinear.

        Raises:
            DataError: See :meth:`map`.
        """
        small = torch.from_numpy(self.map(index, layers, heads, relative=relative))
        return _enlarged(small, (self.image.shape[0], self.image.shape[1]))

    def draw(self, index: int, *, relative: bool = True) -> np.ndarray:
        """The image, grey, under the colours of a piece's heat map (its own range).

        Args:
            index: Which piece.
            relative: See :meth:`map`.

        Returns:
            RGB, uint8, ``[H, W, 3]``.

        Raises:
            DataError: There is no such piece.
        """
        values = self.heat_map(index, relative=relative)
        colours = canvas.heat(values, low=float(values.min()), high=float(values.max())).astype(np.float32)
        grey = np.repeat(self.image.mean(axis=2, keepdims=True), 3, axis=2)
        return np.clip(0.45 * grey + 0.55 * colours, 0, 255).astype(np.uint8)

    def save(self, index: int, path: str | Path, *, relative: bool = True) -> Path:
        """Writes :meth:`draw` as a picture.

        Args:
            index: Which piece.
            path: File, ``.png`` or ``.jpg``.
            relative: See :meth:`map`.

        Returns:
            The file.

        Raises:
            DataError: There is no such piece.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self.draw(index, relative=relative)).save(path)
        return path


def heat_of(stack: np.ndarray, grid: PatchGrid) -> np.ndarray:
    """Where the LMM looked for one phrase: the mean of all attention maps that its head reads.

    Each map counts alike: what a head gives to the image as a whole says nothing about where it looks.

    Args:
        stack: float32 ``[C, rows, cols]`` on the output grid, padding included.
        grid: Geometry of the stack.

    Returns:
        float32 ``[H, W]`` in pixels of the image, bilinear, 1 where the mean is highest (0 everywhere where nothing of
        the image was looked at).
    """
    window = grid.crop_window((stack.shape[-2], stack.shape[-1]))
    maps = torch.from_numpy(stack)[(slice(None), *window)].float()
    mean = (maps / maps.sum((-2, -1), keepdim=True).clamp(min=1e-12)).mean(0)
    return _enlarged(mean / mean.max().clamp(min=1e-12), grid.image_size)


def _enlarged(small: Tensor, size: tuple[int, int]) -> np.ndarray:
    return F.interpolate(small[None, None], size=size, mode="bilinear", align_corners=False)[0, 0].numpy()


def _places(labels: Sequence[int], chosen: Sequence[int] | None, what: str) -> list[int]:
    """Where the chosen ones (None: all) are among the labels."""
    if chosen is not None and len(chosen) == 0:
        raise DataError(
            f"no {what} to take the mean of; name some of those that were read, or leave them out"
        )
    return [_place(labels, label, what) for label in (labels if chosen is None else chosen)]


def _place(labels: Sequence[int], label: int, what: str) -> int:
    if label not in labels:
        raise DataError(f"{what} {shown(label)} was not read; those that were: {', '.join(map(str, labels))}")
    return list(labels).index(label)
