"""Results of grounding: plain numpy, in pixels of the original image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
from PIL import Image

from flmm_detseg.errors import DataError
from flmm_detseg.inference.export.exportable import Exportable
from flmm_detseg.inference.regions import Region
from flmm_detseg.structures import LogitMaps, PackedMasks, PatchGrid
from flmm_detseg.visualization import draw_attention_heads, draw_grounding
from flmm_detseg.visualization.canvas import hstack
from flmm_detseg.visualization.overlay import enlarged


@dataclass(frozen=True)
class GroundingResult(Exportable):
    """Masks and boxes of the K phrases of one image's caption.

    Attributes:
        image: RGB, uint8, ``[H, W, 3]``, as it was read.
        caption: The text the LMM read.
        phrases: K texts as they stand in the caption.
        spans: Per phrase its character spans ``(start, end)`` in the caption, half-open.
        boxes_xyxy: float32 ``[K, 4]``, half-open pixel box of each mask; zeros when the mask is empty.
        scores: float32 ``[K]``, mean foreground probability inside the mask; 0 when it is empty.
        coarse_logits: float32 ``[K, h, w]``: the mask head's output, over the image (without padding).
        packed: The masks, a bit a pixel; :attr:`masks` has them all, :meth:`mask` one.
        refined: The refiner's output at its own size; None where the config has no refiner. :attr:`refined_logits`
            has it at the image's.
        attention: float32 ``[K, C, rows, cols]``, the attention rows of the phrases' tokens on the image
            tokens, padding included; None unless asked for (``keep_attention=True``).
        grid: Geometry of ``attention``; ``grid.crop_window`` cuts the padding away.
        attention_pairs: ``(layer, head)`` of the channels of ``attention``, in order; families that see an image twice
            have all of them for the whole image, then all of them for its tiles.
    """

    image: np.ndarray = field(repr=False)
    caption: str
    phrases: tuple[str, ...]
    spans: tuple[tuple[tuple[int, int], ...], ...]
    boxes_xyxy: np.ndarray
    scores: np.ndarray
    coarse_logits: np.ndarray = field(repr=False)
    packed: PackedMasks = field(repr=False)
    refined: LogitMaps | None = field(default=None, repr=False)
    attention: np.ndarray | None = field(default=None, repr=False)
    grid: PatchGrid | None = field(default=None, repr=False)
    attention_pairs: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        """K."""
        return len(self.phrases)

    @cached_property
    def masks(self) -> np.ndarray:
        """Bool ``[K, H, W]``; unpacked at the first access and cached: a byte a pixel of every mask."""
        return self.packed.unpack().numpy()

    def mask(self, index: int) -> np.ndarray:
        """One mask, bool ``[H, W]``; nothing is kept."""
        return self.packed.unpack(slice(index, index + 1 or None)).numpy()[0]

    @cached_property
    def refined_logits(self) -> np.ndarray | None:
        """float32 ``[K, H, W]``, None where the config has no refiner; computed at the first access and cached."""
        return None if self.refined is None else self.refined.enlarge().numpy()

    @property
    def regions(self) -> Sequence[Region]:
        """The K phrases, for exports."""
        return _Phrases(self)

    def overlay(self, *, boxes: bool = False, beside: bool = False) -> np.ndarray:
        """Picture of the phrases' masks with the caption as legend.

        Args:
            boxes: Draw the boxes too.
            beside: Put the image as it is, which the masks' colours hide, to its left.

        Returns:
            RGB uint8.
        """
        picture = draw_grounding(
            self.image,
            self.masks,
            self.phrases,
            self.scores,
            self.boxes_xyxy if boxes else None,
            caption=self.caption,
            spans=self.spans,
        )
        return hstack([enlarged(self.image), picture]) if beside else picture

    def save_overlay(self, path: str | Path, *, boxes: bool = False, beside: bool = False) -> Path:
        """Writes :meth:`overlay`; the ending decides the format (.png, .jpg). Missing folders are made."""
        return _save(self.overlay(boxes=boxes, beside=beside), path)

    def attention_picture(self, index: int, *, top: int = 7) -> np.ndarray:
        """Picture of the heads that carry phrase ``index``, ranked by IoU with its own predicted mask: how far a head
        agrees with the result, not how right it is.

        Args:
            index: Of the phrase.
            top: How many heads are shown.

        Returns:
            RGB picture, uint8 ``[h, w, 3]``, with titles.

        Raises:
            DataError: The attention was not kept.
        """
        if self.attention is None:
            raise DataError("the attention was not kept: call ground(..., keep_attention=True)")
        mask = self.mask(index)
        return draw_attention_heads(
            self.image,
            self.attention[index],
            self.attention_pairs,
            mask if mask.any() else None,
            grid=self.grid,
            phrase=self.phrases[index],
            top=top,
            target="model's own mask",
        )

    def save_attention(self, path: str | Path, index: int, *, top: int = 7) -> Path:
        """Writes :meth:`attention_picture`."""
        return _save(self.attention_picture(index, top=top), path)


class _Phrases(Sequence[Region]):
    """Phrases of a result as regions; each mask is unpacked when its region is asked for."""

    def __init__(self, result: GroundingResult) -> None:
        self._result = result

    def __len__(self) -> int:
        return len(self._result)

    @overload
    def __getitem__(self, index: int) -> Region: ...
    @overload
    def __getitem__(self, index: slice) -> list[Region]: ...
    def __getitem__(self, index: int | slice) -> Region | list[Region]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        result = self._result
        left, top, right, bottom = map(float, result.boxes_xyxy[index])
        return Region(
            "segment",
            result.phrases[index],
            float(result.scores[index]),
            (left, top, right, bottom),
            result.mask(index),
            spans=result.spans[index],
        )


def _save(picture: np.ndarray, path: str | Path) -> Path:
    path = Path(path)
    if path.suffix.lower() not in Image.registered_extensions():
        raise DataError(f"{path}: no picture format has this ending; use .png or .jpg")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return path
