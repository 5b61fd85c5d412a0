"""What was found in an image, thing by thing: the one form that every export reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

import numpy as np

Box: TypeAlias = tuple[float, float, float, float]
ScoreOf: TypeAlias = Literal["mask", "detector", "quality"]


@dataclass(frozen=True)
class Region:
    """One thing found in the image.

    Attributes:
        kind: ``"detect"`` or ``"segment"``: what was asked for.
        label: Class name, or the phrase; of an outline, how it was pointed at.
        score: In [0, 1].
        box_xyxy: Half-open pixel box in the original image; zeros where the mask is empty.
        mask: bool ``[H, W]``; None where only a box was asked for and the model has no refiner.
        score_of: What the score is: ``"detector"``, the class probability, or ``"mask"``, the mean foreground
            probability inside of the mask (not whether the thing is there), or ``"quality"``, SAM's own
            estimate of its IoU.
        attention: float32 ``[H, W]``, where the LMM looked for a phrase, see
            :func:`~flmm_detseg.inference.attention_maps.heat_of`; None for detected objects, and where it was not kept.
        spans: Character spans of the phrase in the text it is from, half-open; empty for classes.
    """

    kind: str
    label: str
    score: float
    box_xyxy: Box
    mask: np.ndarray | None = field(default=None, repr=False)
    score_of: ScoreOf = "mask"
    attention: np.ndarray | None = field(default=None, repr=False)
    spans: tuple[tuple[int, int], ...] = ()


class WithRegions(Protocol):
    """An image and what was found in it; all that exports know of a result."""

    @property
    def image(self) -> np.ndarray:
        """RGB uint8 ``[H, W, 3]``."""

    @property
    def regions(self) -> Sequence[Region]:
        """In the order of the phrases, or of the steps of the instruction."""
