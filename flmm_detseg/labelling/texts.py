"""Lines of text as detections, read by RapidOCR."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from flmm_detseg.cache.regions.text_reader import TextReader
from flmm_detseg.labelling.models import Detections


@dataclass(frozen=True)
class TextOptions:
    """How texts are looked for; see :class:`~flmm_detseg.cache.regions.text_reader.TextReader`.

    Attributes:
        min_height: Of a line's box, in original pixels.
        scale: Enlargement for the detector.
        num_threads: Of the CPU; the labels do not depend on it.
    """

    min_height: float = 0.0
    scale: float = 1.0
    num_threads: int = 1


class TextDetector:
    """Lines of text with what they say.

    Args:
        options: How to look.
        label: Index of the class of texts.

    Attributes:
        facts: What reads, and how.

    Raises:
        ConfigError: An option cannot be used.
        MissingDependencyError: RapidOCR is not installed.
    """

    def __init__(self, options: TextOptions, label: int) -> None:
        # Scores are judged with those of all other boxes.
        self._reader = TextReader(
            min_score=0.0,
            min_height=options.min_height,
            scale=options.scale,
            num_threads=options.num_threads,
        )
        self._label = label
        settings = asdict(options)
        del settings["num_threads"]
        self.facts: dict[str, Any] = {**self._reader.facts, **settings}

    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Lines of text (arguments, result as :meth:`~flmm_detseg.labelling.models.GroundingDinoDetector.detect`)."""
        return [
            Detections(
                torch.tensor([line.box_xyxy for line in lines], dtype=torch.float32).reshape(-1, 4),
                torch.tensor([line.score for line in lines], dtype=torch.float32),
                torch.full((len(lines),), self._label, dtype=torch.int64),
                tuple(lines),
            )
            for lines in self._reader.find(images)
        ]
