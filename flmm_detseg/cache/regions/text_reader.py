"""Lines of text in images, found and read by RapidOCR (PP-OCRv6's small models, Apache-2.0, inside of its wheel)."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from flmm_detseg.errors import ConfigError, MissingDependencyError
from flmm_detseg.utils.provenance import file_hash

# Files of the wheel. Given by name, because RapidOCR would download a model that it misses.
_DETECTOR, _RECOGNISER = "PP-OCRv6_det_small.onnx", "PP-OCRv6_rec_small.onnx"
_REMEDY = (
    "pip install rapidocr==3.10.0 onnxruntime (in a checkout: pip install --no-deps -r requirements/ocr.txt)"
)
# RapidOCR's own: a line needs as much of the detector before it is read.
_READ_ABOVE = 0.5


@dataclass(frozen=True, eq=False)
class TextLine:
    """A line of text.

    Attributes:
        corners_xy: float32 ``[4, 2]``, original pixels, in the image; clockwise from the one where the text begins.
        score: Of reading where it was read, else of finding; in [0, 1].
        text: What it says; None where it was not read.
    """

    corners_xy: np.ndarray
    score: float
    text: str | None

    @property
    def box_xyxy(self) -> tuple[float, float, float, float]:
        """Smallest box around it, half-open, original pixels."""
        x0, y0 = self.corners_xy.min(0).tolist()
        x1, y1 = self.corners_xy.max(0).tolist()
        return x0, y0, x1, y1


class TextReader:
    """Finds the lines of text of an image, and reads them if wanted.

    The same image gives the same lines, whatever images come with it and however many threads compute. Images are
    looked at one by one: eight in one pass of the detector's network took 1.2 to 1.35 times as long on one CPU thread.
    Lines of one image are read six at a time. Text that is upside down is found, not read.

    Args:
        read: Read the lines too; finding alone takes a fraction of the time.
        min_score: Lines below are left out: by the score of reading, or of finding where nothing is read.
        min_height: Lines whose boxes are lower are left out, in original pixels.
        scale: Enlargement before the detector sees the image. It was trained on text of about 15 pixels and more.
        max_pixels: An image with more, after ``scale``, is made smaller. 4 million need 1.3 GB.
        num_threads: Of the CPU.

    Attributes:
        facts: What reads: versions, and hashes of the model files.

    Raises:
        ConfigError: A number cannot be used.
        MissingDependencyError: RapidOCR, its ONNX Runtime or its models are not installed.
    """

    def __init__(
        self,
        *,
        read: bool = True,
        min_score: float = 0.5,
        min_height: float = 0.0,
        scale: float = 1.0,
        max_pixels: int = 4_000_000,
        num_threads: int = 1,
    ) -> None:
        if not 0 <= min_score <= 1:
            raise ConfigError(f"`min_score` of texts is {min_score}; allowed: 0 to 1")
        if not 0 <= min_height < math.inf:
            raise ConfigError(f"`min_height` of texts is {min_height}; a number of pixels, 0 or more")
        if not 0 < scale <= 16:
            raise ConfigError(f"`scale` of texts is {scale}; allowed: above 0, up to 16")
        if max_pixels < 32 * 32 or num_threads < 1:
            raise ConfigError(
                f"max_pixels={max_pixels} must be at least {32 * 32}, num_threads={num_threads} at least 1"
            )
        self.read, self.min_score, self.min_height = read, min_score, min_height
        self.scale, self.max_pixels = scale, max_pixels
        self._engine, self.facts = _load(read, _READ_ABOVE if read else min_score, num_threads)

    def find(self, images: Sequence[np.ndarray]) -> list[list[TextLine]]:
        """Lines of text.

        Args:
            images: RGB uint8 ``[H, W, 3]``, any sizes.

        Returns:
            Per image its lines, from top to bottom, those beside each other from left to right.
        """
        return [self._find(image) for image in images]

    def _find(self, image: np.ndarray) -> list[TextLine]:
        height, width = image.shape[:2]
        scale = min(self.scale, math.sqrt(self.max_pixels / (height * width)))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        shown = np.ascontiguousarray(image[..., ::-1])  # RapidOCR takes arrays as BGR
        if size != (width, height):
            method = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
            shown = cv2.resize(shown, size, interpolation=method)
        found = self._engine(shown)
        texts = getattr(found, "txts", None)
        if not self.read and found.boxes is not None:
            texts = [None] * len(found.boxes)
        if found.boxes is None or texts is None:
            return []
        corners = np.asarray(found.boxes, dtype=np.float64) * (width / size[0], height / size[1])
        corners = corners.clip(0, (width, height)).astype(np.float32)
        lines = [
            TextLine(places, float(score), text)
            for places, score, text in zip(corners, found.scores, texts, strict=True)
        ]
        return [line for line in lines if self._wanted(line)]

    def _wanted(self, line: TextLine) -> bool:
        x0, y0, x1, y1 = line.box_xyxy
        return line.score >= self.min_score and y1 - y0 >= max(self.min_height, 1) and x1 - x0 >= 1


def _load(read: bool, least: float, num_threads: int) -> tuple[Any, dict[str, Any]]:
    """The engine, which keeps no state between calls, and what it is."""
    try:
        import onnxruntime  # noqa: F401  RapidOCR imports it when it is first used
        import rapidocr
    except ImportError as error:
        raise MissingDependencyError(
            f"texts in images are found by RapidOCR, which is not installed ({error}): {_REMEDY}"
        ) from error
    folder = Path(rapidocr.__file__).parent / "models"
    files = [folder / name for name in ((_DETECTOR, _RECOGNISER) if read else (_DETECTOR,))]
    for file in files:
        if not file.is_file():
            raise MissingDependencyError(
                f"{file.name} is not in the installed package rapidocr; its tested version has it: {_REMEDY}"
            )
    threads = min(num_threads, os.cpu_count() or 1)  # RapidOCR takes a larger number for "all"
    settings: dict[str, Any] = {
        "Global.log_level": "error",
        "Global.use_cls": False,
        "Global.use_rec": read,
        "Global.text_score": 0.0,  # min_score is applied here
        # Sizes are decided here: its own rules enlarge a 112 x 80 screenshot 9 times, and a narrow strip without limit.
        "Global.use_preprocess_img": False,
        "Global.use_vertical_padding": False,
        "Det.limit_side_len": 32,
        "Det.box_thresh": least,
        "Det.model_path": str(files[0]),
        "EngineConfig.onnxruntime.intra_op_num_threads": threads,
        "EngineConfig.onnxruntime.inter_op_num_threads": 1,
    }
    if read:
        settings["Rec.model_path"] = str(files[1])
    facts = {
        "models": {file.name: file_hash(file) for file in files},
        "versions": {name: version(name) for name in ("rapidocr", "onnxruntime")},
    }
    return rapidocr.RapidOCR(params=settings), facts
