"""Where the image tokens of a sequence lie in the image, and the way back to image coordinates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flmm_detseg.errors import ConfigError


@dataclass(frozen=True)
class GridLevel:
    """One map of image tokens inside the sequence.

    Attributes:
        rows: Token rows of the whole map.
        cols: Token columns that are image patches.
        newline_cols: Extra tokens at the end of each row that are no patch (LLaVA-NeXT: 1), dropped from maps.
        tiles: ``(rows, cols)`` of tiles that the map is put together from. Tokens come tile after tile, row by row
            inside of each; ``(1, 1)``: row by row. Not together with ``newline_cols``.
        tail: Extra tokens after the whole map that are no patch, dropped from maps.
    """

    rows: int
    cols: int
    newline_cols: int = 0
    tiles: tuple[int, int] = (1, 1)
    tail: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of the map in the sequence, newline tokens and tail included."""
        return self.rows * (self.cols + self.newline_cols) + self.tail

    def places(self) -> Tensor:
        """Place of each patch among the level's tokens, int64 ``[rows * cols]``, row by row over the whole map."""
        order = torch.arange(self.num_tokens - self.tail)
        if self.tiles == (1, 1):
            return order.view(self.rows, -1)[:, : self.cols].flatten()
        down, across = self.tiles
        tiles = order.view(down, across, self.rows // down, self.cols // across)
        return tiles.permute(0, 2, 1, 3).flatten()


@dataclass(frozen=True)
class PatchGrid:
    """Geometry of one image in one LMM: original image -> resized -> padded frame -> token grid(s).

    All sizes are ``(H, W)`` in pixels of the frame they name. An LMM may see the middle of the resized image only
    (LLaVA-v1): then the padding is negative, and there is no map over the whole image.

    Attributes:
        image_size: Original image.
        resized_size: Image after the processor's resize, before padding ("processor size": default mask targets).
        pad_top: Padding rows above the resized image.
        pad_left: Padding columns left of the resized image.
        padded_size: Frame that the output grid covers. Equal to ``resized_size`` when maps are already un-padded
            (LLaVA-NeXT).
        levels: Maps of tokens in sequence order (LLaVA: one; LLaVA-NeXT: coarse, then fine).
        stack: Levels of the attention stack, coarse first; the last one is the output grid. A level may stand there
            twice: the number of channels is the LMM's, not the image's. Empty: all levels in sequence order.
        view: ``(rows, cols)`` of the tower's patches on its view of the whole image; None: the first level's.
    """

    image_size: tuple[int, int]
    resized_size: tuple[int, int]
    pad_top: int
    pad_left: int
    padded_size: tuple[int, int]
    levels: tuple[GridLevel, ...]
    stack: tuple[int, ...] = ()
    view: tuple[int, int] | None = None

    @property
    def num_tokens(self) -> int:
        """All image tokens of the sequence, newline tokens included."""
        return sum(level.num_tokens for level in self.levels)

    @property
    def stacked(self) -> tuple[int, ...]:
        """Indices of the levels of the attention stack, coarse first, see :attr:`stack`."""
        return self.stack or tuple(range(len(self.levels)))

    @property
    def output_grid(self) -> tuple[int, int]:
        """``(rows, cols)`` of the attention stack: the finest level; coarser ones are resized to it."""
        level = self.levels[self.stacked[-1]]
        return level.rows, level.cols

    @property
    def view_grid(self) -> tuple[int, int]:
        """``(rows, cols)`` of the vision maps."""
        return self.view or (self.levels[0].rows, self.levels[0].cols)

    @property
    def cropped(self) -> bool:
        """Whether the frame is smaller than the resized image."""
        return any(seen < whole for seen, whole in zip(self.padded_size, self.resized_size, strict=True))

    def _require_whole(self) -> None:
        if self.cropped:
            raise ConfigError(
                f"this LMM sees the middle of an image only ({self.padded_size} of {self.resized_size} pixels): what "
                "reads maps over the whole image (attention, vision features, regions) cannot be used with it; masks "
                "of [SEG] by a SAM can"
            )

    @property
    def view_fractions(self) -> tuple[float, float, float, float]:
        """``(y0, x0, y1, x1)`` in [0, 1]: where the image lies in the view that the vision tower sees.

        LLaVA pads that view; LLaVA-NeXT squeezes the image into it (all of it is image).

        Raises:
            ConfigError: The view is a part of the image.
        """
        self._require_whole()
        height, width = self.padded_size
        return (
            self.pad_top / height,
            self.pad_left / width,
            (self.pad_top + self.resized_size[0]) / height,
            (self.pad_left + self.resized_size[1]) / width,
        )

    def crop_window(self, map_size: tuple[int, int]) -> tuple[slice, slice]:
        """Rows and columns of a map over the padded frame that show the image.

        ``start = int(pad * M / P)``, ``length = int(n * M / P + 0.5)`` as F-LMM does (reference/flmm.md, section 2).

        Args:
            map_size: ``(M_h, M_w)`` of a map that covers ``padded_size``.

        Returns:
            Slices for the last two axes.

        Raises:
            ConfigError: The frame is a part of the image.
        """
        self._require_whole()

        def window(pad: int, length: int, padded: int, side: int) -> slice:
            start = int(pad * side / padded)
            return slice(start, start + max(1, int(length * side / padded + 0.5)))

        return (
            window(self.pad_top, self.resized_size[0], self.padded_size[0], map_size[0]),
            window(self.pad_left, self.resized_size[1], self.padded_size[1], map_size[1]),
        )
