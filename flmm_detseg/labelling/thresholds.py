"""Thresholds that a box must reach to become a label."""

from __future__ import annotations

from dataclasses import dataclass

from flmm_detseg.errors import ConfigError


@dataclass(frozen=True)
class Thresholds:
    """What a box needs to become a label.

    Attributes:
        box: A token of the prompt has a higher score.
        text: A token of the class has a higher score.
        nms: Overlap (IoU) with a better box up to which a box stays, whatever the classes: one object gets one label.
        min_score: Score of the class, at least.
        max_boxes: Of an image; the best stay.
        ground_truth_iou: Overlap with a true box of the same class up to which a box stays.

    Raises:
        ConfigError: A value is out of range.
    """

    box: float = 0.35
    text: float = 0.25
    nms: float = 0.8
    min_score: float = 0.5
    max_boxes: int = 100
    ground_truth_iou: float = 0.5

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name in ("box", "text", "nms", "min_score", "ground_truth_iou"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"threshold `{name}` is {getattr(self, name)}; allowed: 0 to 1")
        if self.max_boxes < 1:
            raise ConfigError(f"`max_boxes` is {self.max_boxes}; at least 1 is needed")
