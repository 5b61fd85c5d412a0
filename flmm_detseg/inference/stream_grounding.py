"""Masks for the answers of `python tools/stream.py --ground DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flmm_detseg.inference.export.coco import CocoFile
from flmm_detseg.inference.grounder import Grounder
from flmm_detseg.models import GroundingLMM
from flmm_detseg.structures import Generation
from flmm_detseg.utils.whole_files import write_json


class StreamGrounding:
    """Grounds the noun phrases of answers, draws them into a folder, and remembers what was found.

    Args:
        model: With a phrase head.
        folder: Where pictures and ``masks.json`` go; made when needed.

    Attributes:
        capture: What the answers have to keep.

    Raises:
        ConfigError: The model has no phrase head.
    """

    def __init__(self, model: GroundingLMM, folder: Path) -> None:
        self._grounder = Grounder(model)
        self.capture = self._grounder.capture
        self._folder = folder
        self._coco = CocoFile()
        self._answers: list[dict[str, Any]] = []

    def add(self, image: Path, question: str, generation: Generation | None) -> None:
        """Grounds one answer. An answer that names nothing gets no picture.

        Args:
            image: The file that was asked about.
            question: What was asked.
            generation: The answer.
        """
        result = self._grounder.ground_answer(image, generation)
        entry: dict[str, Any] = {"image": str(image), "question": question, "answer": result.caption}
        if len(result):
            picture = self._folder / f"{len(self._answers) + 1:04d}_{image.stem}.png"
            entry["overlay"] = str(result.save_overlay(picture, boxes=True))
        found = self._coco.add(result, str(image))
        keys = ("id", "phrase", "score", "bbox", "area")
        self._answers.append(entry | {"masks": [{key: item[key] for key in keys} for item in found]})

    def write(self) -> dict[str, Any]:
        """Writes all masks as one COCO file (``masks.json``).

        Returns:
            For the command's last line: ``masks`` (the file), and ``grounded``: per answer its picture and its masks
            (without their pixels).
        """
        file = self._folder / "masks.json"
        write_json(file, self._coco.content(), indent=None)
        return {"masks": str(file), "grounded": self._answers}
