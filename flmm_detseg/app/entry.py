"""A turn of a conversation as the app keeps it: what was found, and the layers that the page shows of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from flmm_detseg.app import layers
from flmm_detseg.inference.chat import ChatTurn
from flmm_detseg.inference.regions import Region
from flmm_detseg.visualization import canvas


@dataclass
class Entry:
    """One turn.

    Attributes:
        key: Name in the addresses of the page, unique for the user.
        turn: Without attention (that is in a layer already).
        size: ``(H, W)`` of the user's file, which COCO files are about.
        left_out: Regions beyond the limit.
    """

    key: str
    turn: ChatTurn
    size: tuple[int, int]
    left_out: int = 0
    _attention: dict[int, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, key: str, turn: ChatTurn, size: tuple[int, int], most: int) -> Entry:
        """Keeps what is shown of a turn.

        Args:
            key: See :class:`Entry`.
            turn: With its attention.
            size: See :class:`Entry`.
            most: Regions to keep.

        Returns:
            The entry.
        """
        kept = turn.phrases[:most]
        heat = {
            index: layers.heat_layer(phrase.attention)
            for index, phrase in enumerate(kept)
            if phrase.attention is not None
        }
        bare = tuple(replace(phrase, attention=None) for phrase in kept)
        return cls(key, replace(turn, phrases=bare), size, len(turn.phrases) - len(kept), heat)

    @property
    def num_bytes(self) -> int:
        """What it takes, without the picture."""
        masks = sum(phrase.mask.nbytes for phrase in self.turn.phrases if phrase.mask is not None)
        return masks + sum(map(len, self._attention.values()))

    def kinds(self, index: int) -> tuple[str, ...]:
        """Layers that a phrase has: ``mask``, ``outline``, ``attention``."""
        return ("mask", "outline", "attention") if index in self._attention else ("mask", "outline")

    def layer(self, index: int, kind: str) -> bytes | None:
        """One layer.

        Args:
            index: Of the phrase.
            kind: See :meth:`kinds`.

        Returns:
            PNG with alpha; None where there is no such layer.
        """
        if not 0 <= index < len(self.turn.phrases) or kind not in self.kinds(index):
            return None
        if kind == "attention":
            return self._attention[index]
        phrase, colour = self.turn.phrases[index], canvas.phrase_colour(index)
        if phrase.mask is None:
            return layers.box_layer(phrase.box_xyxy, self.turn.image.shape[:2], colour)
        return layers.mask_layer(phrase.mask, colour, fill=kind == "mask")

    def overlay(self, threshold: float = 0.0) -> bytes:
        """The picture with what was found.

        Args:
            threshold: Least score of detected objects that are drawn.

        Returns:
            PNG.
        """
        return layers.png(self._above(threshold).overlay())

    def coco(self, name: str, threshold: float = 0.0) -> dict[str, object]:
        """What was found, as a COCO file about the user's own file.

        Args:
            name: Of the file.
            threshold: Least score of detected objects.

        Returns:
            JSON-ready; masks and boxes at the file's own size.
        """
        turn = self._above(threshold)
        small = turn.image.shape[:2]
        if small != self.size:
            enlarge: Callable[[Region], Region] = partial(_enlarged, small=small, size=self.size)
            pixels = np.broadcast_to(np.zeros((1, 1, 3), dtype=np.uint8), (*self.size, 3))
            turn = replace(turn, image=pixels, phrases=tuple(map(enlarge, turn.phrases)))
        return turn.to_coco_file(name)

    def _above(self, threshold: float) -> ChatTurn:
        kept = tuple(
            phrase
            for phrase in self.turn.phrases
            if phrase.score_of != "detector" or phrase.score >= threshold
        )
        return replace(self.turn, phrases=kept)


def _enlarged(phrase: Region, small: tuple[int, int], size: tuple[int, int]) -> Region:
    """A phrase of the reduced picture in pixels of the file."""
    down, across = size[0] / small[0], size[1] / small[1]
    x0, y0, x1, y1 = phrase.box_xyxy
    box = (x0 * across, y0 * down, x1 * across, y1 * down)
    if phrase.mask is None:
        return replace(phrase, box_xyxy=box)
    mask = canvas.resize_mask(phrase.mask, size)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if rows.size:
        box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    return replace(phrase, mask=mask, box_xyxy=box if rows.size else (0.0, 0.0, 0.0, 0.0))
