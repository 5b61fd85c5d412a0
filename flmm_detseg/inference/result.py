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
from flmm_detseg.models.domain import DomainScore
from flmm_detseg.structures import LogitMaps, PackedMasks, PatchGrid
from flmm_detseg.visualization import draw_attention_heads, draw_grounding
from flmm_detseg.visualization.animation import draw_frames, save_animation
from flmm_detseg.visualization.canvas import hstack, resize_map
from flmm_detseg.visualization.overlay import Style, enlarged


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
        domain: How far the image is from those the model was trained on; None where the model does not say.
        presence: float32 ``[K]``: calibrated probability that the image shows what the phrase names (of the masks of an
            answer's mask tokens: what was asked for, the same for all); None where the model has no presence head.
        answer_presence: Of a question that was answered with mask tokens, or asked for them: the probability that the
            image shows what it asks for, whether the answer holds a mask or not; None elsewhere.
        min_presence: What was asked for: phrases below it are not :attr:`found`, their masks empty; None: nothing was.
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
    domain: DomainScore | None = None
    presence: np.ndarray | None = None
    min_presence: float | None = None
    answer_presence: float | None = None

    @property
    def found(self) -> np.ndarray:
        """Whether there is what each phrase names, bool ``[K]``; of all where no ``min_presence`` was asked for."""
        if self.presence is None or self.min_presence is None:
            return np.ones(len(self), dtype=bool)
        return self.presence >= np.float32(self.min_presence)

    @property
    def not_found(self) -> tuple[str, ...]:
        """The phrases that are not :attr:`found`."""
        return tuple(phrase for phrase, found in zip(self.phrases, self.found, strict=True) if not found)

    @property
    def out_of_domain(self) -> bool:
        """Whether the image is far from all that the model knows, so that masks and scores mean nothing."""
        return self.domain is not None and self.domain.far

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
        """The phrases that were found, for exports."""
        return _Phrases(self)

    def overlay(self, *, boxes: bool = False, beside: bool = False, style: Style = "tint") -> np.ndarray:
        """Picture of the phrases' masks with the caption as legend.

        Args:
            boxes: Draw the boxes too.
            beside: Put the image as it is, which the masks' colours hide, to its left.
            style: ``"contour"`` draws the masks' borders alone, so that objects keep their colours.

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
            style=style,
        )
        return hstack([enlarged(self.image), picture]) if beside else picture

    def save_overlay(
        self, path: str | Path, *, boxes: bool = False, beside: bool = False, style: Style = "tint"
    ) -> Path:
        """Writes :meth:`overlay`; the ending decides the format (.png, .jpg). Missing folders are made."""
        return _save(self.overlay(boxes=boxes, beside=beside, style=style), path)

    def heat_map(self, index: int) -> np.ndarray:
        """Where the LMM looked at the words of a phrase more than at those of the others.

        Args:
            index: Of the phrase.

        Returns:
            float32 ``[H, W]``, at least 0: the mean over all channels of its attention, enlarged to the image without
            padding. With several phrases it is divided by the mean over them, because some cells are looked at
            whatever a text says.

        Raises:
            DataError: The attention was not kept.
        """
        attention, grid = self._kept_attention()
        window = grid.crop_window((attention.shape[2], attention.shape[3]))
        found = attention[index].mean(axis=0)[window]
        if len(self) > 1:
            found = found / np.maximum(attention.mean(axis=(0, 1))[window], 1e-12)
        return resize_map(found, (self.image.shape[0], self.image.shape[1]))

    def save_animation(self, path: str | Path) -> Path:
        """Writes a picture that goes through the phrases: where the LMM looked, and the mask made of it.

        Args:
            path: The ending decides the format: .gif, .webp, or .png (an animated one).

        Returns:
            ``path``.

        Raises:
            DataError: The attention was not kept, there is no phrase, or the ending is another.
        """
        self._kept_attention()
        heat = [self.heat_map(index) for index in range(len(self))]
        return save_animation(draw_frames(self.image, self.caption, self.spans, self.masks, heat), path)

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
        attention, grid = self._kept_attention()
        mask = self.mask(index)
        return draw_attention_heads(
            self.image,
            attention[index],
            self.attention_pairs,
            mask if mask.any() else None,
            grid=grid,
            phrase=self.phrases[index],
            top=top,
            target="model's own mask",
        )

    def save_attention(self, path: str | Path, index: int, *, top: int = 7) -> Path:
        """Writes :meth:`attention_picture`."""
        return _save(self.attention_picture(index, top=top), path)

    def _kept_attention(self) -> tuple[np.ndarray, PatchGrid]:
        """The attention stack ``[K, C, rows, cols]`` and its geometry."""
        if self.attention is None or self.grid is None:
            raise DataError("the attention was not kept: call ground(..., keep_attention=True)")
        return self.attention, self.grid


class _Phrases(Sequence[Region]):
    """Phrases of a result as regions; each mask is unpacked when its region is asked for."""

    def __init__(self, result: GroundingResult) -> None:
        self._result = result
        self._found = np.flatnonzero(result.found)

    def __len__(self) -> int:
        return len(self._found)

    @overload
    def __getitem__(self, index: int) -> Region: ...
    @overload
    def __getitem__(self, index: slice) -> list[Region]: ...
    def __getitem__(self, index: int | slice) -> Region | list[Region]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        result, index = self._result, int(self._found[index])
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
