"""Texts as objects: the lines that RapidOCR finds."""

from __future__ import annotations

import math

import numpy as np

from flmm_detseg.cache.regions.sources import Regions, RegionSource
from flmm_detseg.cache.regions.text_reader import TextReader
from flmm_detseg.errors import ConfigError
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import Sample

# The class of all boxes, for `Partitioner(labels=["text"])`.
TEXT = "text"


@MODELS.register_module()
class TextRegions(RegionSource):
    """Lines of text are objects, from the first image on: what a screen writes is what changes on it.

    Needs the packages of the extra ``ocr``. Things that change and are no text (icons, pictures) stay background: put
    another source beside it with :class:`~flmm_detseg.cache.regions.united_regions.UnitedRegions`.

    Args:
        min_score: Lines below are no objects: by the score of finding, or of reading.
        min_height: Lines lower than that are no objects, in original pixels.
        padding: Pixels by which boxes are widened on every side, within the image.
        scale: Enlargement for the detector; see :class:`~flmm_detseg.cache.regions.text_reader.TextReader`.
        max_pixels: The detector sees at most so many.
        read: Also read every line and go by that score: some shapes that were taken for letters go, at several times
            the time.
        num_threads: Of the CPU.

    Raises:
        ConfigError: A number cannot be used.
        MissingDependencyError: The packages are not installed.
    """

    name = "texts"

    def __init__(
        self,
        min_score: float = 0.5,
        min_height: float = 0.0,
        padding: float = 0.0,
        scale: float = 1.0,
        max_pixels: int = 4_000_000,
        read: bool = False,
        num_threads: int = 1,
    ) -> None:
        if not 0 <= padding < math.inf:
            raise ConfigError(f"`padding` of texts is {padding}; a number of pixels, 0 or more")
        self.padding = padding
        self._reader = TextReader(
            read=read,
            min_score=min_score,
            min_height=min_height,
            scale=scale,
            max_pixels=max_pixels,
            num_threads=num_threads,
        )

    def find(self, sample: Sample) -> Regions:
        """See :class:`RegionSource`."""
        (lines,) = self._reader.find([sample.image])
        height, width = sample.image_size
        boxes = np.array([line.box_xyxy for line in lines], dtype=np.float32).reshape(-1, 4)
        wider = boxes + np.array([-1, -1, 1, 1], dtype=np.float32) * self.padding
        return Regions(
            boxes_xyxy=wider.clip(0, (width, height, width, height)).astype(np.float32),
            scores=np.array([line.score for line in lines], dtype=np.float32),
            labels=[TEXT] * len(lines),
        )
