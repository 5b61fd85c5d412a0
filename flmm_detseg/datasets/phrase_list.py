"""Images and phrases without masks, one JSON object a line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flmm_detseg.datasets.base import GroundingDataset
from flmm_detseg.datasets.files import existing_file, parse_line, require_dir, require_file
from flmm_detseg.registry import DATASETS
from flmm_detseg.structures import Phrase, Sample
from flmm_detseg.utils.values import FieldError, check_text, check_words


@dataclass(frozen=True, slots=True)
class _Record:
    record_id: str
    path: Path
    phrase: str


@DATASETS.register_module()
class PhraseList(GroundingDataset):
    """Lines ``{"image": "cat.jpg", "phrase": "the cat on the mat"}``: what an LMM's heads are ranked on.

    Samples have the phrase as their whole text, and no masks.

    Args:
        file: JSONL file.
        image_dir: Folder that ``image`` starts from.
        policy: ``"raise"`` | ``"skip"`` for lines that cannot be used.
        verify_images: Decode every image at construction, so that ``policy="skip"`` covers them too.
        name: First part of record ids.

    Raises:
        DataError: The file is missing, or (``policy="raise"``) a line is unusable; names file and line.
    """

    def __init__(
        self,
        file: str,
        image_dir: str,
        policy: str = "raise",
        verify_images: bool = False,
        name: str = "phrases",
    ) -> None:
        super().__init__(policy)
        self.file = require_file(file, "phrase file")
        self.annotation_files = (self.file,)
        self.image_dir = require_dir(image_dir, "image folder")
        self.name = name
        remedy = "Mend the line, or use policy='skip' to leave such lines out."
        self.records = self._read_lines(self.file, remedy, self._read_line)
        self._finish(verify_images, str(self.file))

    def phrase_texts(self, index: int) -> tuple[str, list[str]]:
        """Image id of a record, and its phrase."""
        record: _Record = self.records[index]
        return str(record.path), [record.phrase]

    def _read_line(self, number: int, line: bytes) -> _Record:
        entry: dict[str, Any] = parse_line(line)
        for key in ("image", "phrase"):
            if not isinstance(entry.get(key), str) or not entry[key].strip():
                raise FieldError(f"`{key}` is missing or not a text", "missing key")
        path = existing_file(self.image_dir, entry["image"], "image")
        phrase = check_words(check_text(entry["phrase"], "phrase").strip(), "phrase")
        return _Record(f"{self.name}/{number}", path, phrase)

    def _read(self, record: _Record) -> Sample:
        return Sample(
            record_id=record.record_id,
            image=self._load_image(record.path, record.record_id),
            text=record.phrase,
            phrases=(Phrase(((0, len(record.phrase)),)),),
            image_id=str(record.path),
        )
