"""A stand-in for RapidOCR that takes blue rectangles for lines of text, as the package would be called."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

FILES = ("PP-OCRv6_det_small.onnx", "PP-OCRv6_rec_small.onnx")


class FakeRapidOCR:
    """Blue (in BGR) rectangles from left to right; the score is their green over 255, the text comes from a list."""

    made: list[FakeRapidOCR] = []
    texts: Sequence[str] = ()

    def __init__(self, params: dict[str, Any]) -> None:
        self.params = params
        self.shapes: list[tuple[int, int]] = []
        FakeRapidOCR.made.append(self)

    def __call__(self, image: np.ndarray) -> SimpleNamespace:
        self.shapes.append(image.shape[:2])
        blue = ((image[..., 0] > 128) & (image[..., 2] < 128)).astype(np.uint8)
        count, _, stats, _ = cv2.connectedComponentsWithStats(blue)
        places = sorted(stats[1:].tolist())
        if not places:
            return SimpleNamespace(boxes=None, scores=None)
        corners = [[(x, y), (x + w, y), (x + w, y + h), (x, y + h)] for x, y, w, h, _ in places]
        scores = [image[y + h // 2, x + w // 2, 1] / 255 for x, y, w, h, _ in places]
        found = SimpleNamespace(boxes=np.array(corners, dtype=np.float32), scores=scores)
        if self.params["Global.use_rec"]:
            found.txts = tuple(self.texts[: count - 1])
        return found


def text_image(size: tuple[int, int], *boxes: Sequence[int], score: float = 0.8) -> np.ndarray:
    """A picture with "lines" at boxes (xyxy); RGB uint8 ``[H, W, 3]``."""
    image = np.zeros((*size, 3), dtype=np.uint8)
    for x0, y0, x1, y1 in boxes:
        image[y0:y1, x0:x1] = 0, round(score * 255), 255
    return image


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, texts: Sequence[str] = ()) -> type[FakeRapidOCR]:
    """Puts the stand-in and empty model files where the packages would be."""
    (folder / "rapidocr" / "models").mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (folder / "rapidocr" / "models" / name).write_bytes(name.encode())
    package = ModuleType("rapidocr")
    package.__file__ = str(folder / "rapidocr" / "__init__.py")
    package.RapidOCR = FakeRapidOCR  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rapidocr", package)
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    monkeypatch.setattr("flmm_detseg.cache.regions.text_reader.version", lambda name: f"{name} 0")
    monkeypatch.setattr(FakeRapidOCR, "made", [])
    monkeypatch.setattr(FakeRapidOCR, "texts", list(texts))
    return FakeRapidOCR
