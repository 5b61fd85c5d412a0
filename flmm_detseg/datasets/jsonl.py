"""Own data: one JSON object per line with image, caption, phrases and masks (format: docs/own_data.md)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flmm_detseg.datasets.base import GroundingDataset
from flmm_detseg.datasets.files import (
    existing_file,
    optional_words,
    parse_line,
    require_dir,
    require_file,
    words_argument,
)
from flmm_detseg.datasets.masks import check_polygons, decode_segmentation, read_mask_png
from flmm_detseg.datasets.policy import RecordError, record_error
from flmm_detseg.language.words import canonical, find_words
from flmm_detseg.registry import DATASETS
from flmm_detseg.structures import Phrase, Sample
from flmm_detseg.utils.values import FieldError, check_words, identifier, is_number, shown

_LINE_KEYS = {"id", "image", "caption", "phrases", "prompt"}
_PHRASE_KEYS = {"span", "spans", "text", "mask", "box", "absent"}
_MASK_KEYS = ("rle", "polygon", "png")
_REMEDY = "See docs/own_data.md; policy='skip' leaves such lines out."


@dataclass(frozen=True, slots=True)
class _Record:
    line: int
    record_id: str
    image_path: Path
    caption: str
    prompt: str | None
    phrases: tuple[Phrase, ...]
    masks: tuple[Any, ...]  # as in the file; None: the phrase has no object in the image
    boxes: tuple[Any, ...]
    absent: tuple[str | None, ...]  # what of it is not there


@DATASETS.register_module()
class JSONLDataset(GroundingDataset):
    """A user's own records.

    Args:
        file: The JSONL file.
        image_dir: Folder that relative ``image`` and mask ``png`` paths start from; None: the file's own
            folder.
        policy: ``"raise"`` | ``"skip"`` for lines that cannot be used (the line is the unit skipped).
        allow_empty: Accept phrases without an object in the image (``"mask": null`` or an empty mask).
        prompt: The user's question where a line has none; None: the LMM adapter's default.
        verify_images: Decode every image and mask at construction, so that ``policy="skip"`` covers them too.
        name: First part of record ids.

    Raises:
        DataError: The file is missing, or (``policy="raise"``) a line is unusable; names file and line.
        ConfigError: ``prompt`` cannot be used.
    """

    def __init__(
        self,
        file: str,
        image_dir: str | None = None,
        policy: str = "raise",
        allow_empty: bool = False,
        prompt: str | None = None,
        verify_images: bool = False,
        name: str = "jsonl",
    ) -> None:
        super().__init__(policy)
        self.file = require_file(file, "data file")
        self.annotation_files = (self.file,)
        self.image_dir = self.file.parent if image_dir is None else require_dir(image_dir, "image folder")
        self.allow_empty, self.prompt, self.name = allow_empty, words_argument(prompt, "prompt"), name
        records: list[_Record] = self._read_lines(self.file, _REMEDY, self._read_line)
        self.records = [record for record in records if record.phrases]
        for record in records:
            if not record.phrases:
                self._log.drop("no phrase", record.record_id)
        self._finish(verify_images, str(self.file))

    def phrase_texts(self, index: int) -> tuple[str, list[str]]:
        """Image id and phrase texts of a record, without reading its image."""
        record = self.records[index]
        texts = [
            " ".join(record.caption[start:end] for start, end in phrase.spans) for phrase in record.phrases
        ]
        return str(record.image_path), texts

    def _problem(self, line: int, message: str, kind: str) -> RecordError:
        return record_error(str(self.file), f"line {line}", message, _REMEDY, kind)

    def _read_line(self, number: int, line: bytes) -> _Record:
        entry = parse_line(line)
        self._check_keys(number, "the line", entry, _LINE_KEYS)
        for key, kind in (("image", str), ("caption", str), ("phrases", list)):
            if not isinstance(entry.get(key), kind):
                raise FieldError(f"`{key}` is missing or not a {kind.__name__}", "missing key")
        image_path = existing_file(self.image_dir, entry["image"], "image")
        caption = check_words(entry["caption"], "caption")
        prompt = optional_words(entry.get("prompt"), "prompt")
        record_id = identifier(entry["id"], "id") if entry.get("id") is not None else f"line-{number}"
        phrases = tuple(self._read_phrase(number, caption, k, p) for k, p in enumerate(entry["phrases"]))
        return _Record(
            line=number,
            record_id=f"{self.name}/{record_id}",
            image_path=image_path,
            caption=caption,
            prompt=self.prompt if prompt is None else prompt,
            phrases=phrases,
            masks=tuple(phrase["mask"] for phrase in entry["phrases"]),
            boxes=tuple(phrase.get("box") for phrase in entry["phrases"]),
            absent=tuple(phrase.get("absent") for phrase in entry["phrases"]),
        )

    def _check_keys(self, line: int, what: str, entry: dict[str, Any], known: set[str]) -> None:
        unknown = sorted(set(entry) - known)
        if unknown:
            message = (
                f"{what} has an unknown key `{shown(unknown[0])[1:-1]}` (known: {', '.join(sorted(known))})"
            )
            raise self._problem(line, message, "unknown key")

    def _read_phrase(self, line: int, caption: str, number: int, entry: Any) -> Phrase:
        what = f"phrase {number}"
        if not isinstance(entry, dict):
            raise self._problem(line, f"{what} is not an object", "missing key")
        self._check_keys(line, what, entry, _PHRASE_KEYS)
        self._check_mask_entry(line, what, entry)
        absent = entry.get("absent")
        if absent is not None and (not isinstance(absent, str) or not absent or entry["mask"] is not None):
            message = (
                f"{what}: `absent` {shown(absent)} says what is not there, of a phrase whose mask is null"
            )
            raise self._problem(line, message, "bad mask")
        box = entry.get("box")
        if box is not None and not (
            isinstance(box, list) and len(box) == 4 and all(map(is_number, box))
            and box[0] < box[2] and box[1] < box[3]
        ):  # fmt: skip
            raise self._problem(
                line, f"{what}: `box` {shown(box)} is not [x0, y0, x1, y1] with x0 < x1, y0 < y1", "bad box"
            )
        text = entry.get("text")
        if "spans" in entry or "span" in entry:
            spans = entry["spans"] if "spans" in entry else [entry["span"]]
            return self._check_spans(line, what, caption, spans, text)
        if not isinstance(text, str) or not text.strip():
            raise self._problem(line, f"{what} needs `span`, `spans` or `text`", "missing key")
        places = find_words(caption, text)
        # Cautious: places within other words count, too.
        count = max(caption.count(text), len(places))
        if count != 1 or not places:
            where = "only inside of a word of" if count == 1 else f"{count} times in"
            message = f"{what}: {shown(text)} occurs {where} the caption; give its `span`"
            raise self._problem(line, message, "span does not match")
        return Phrase(spans=(places[0],))

    def _check_spans(self, line: int, what: str, caption: str, spans: Any, text: str | None) -> Phrase:
        kind = "span does not match"
        if not isinstance(spans, list) or not spans:
            raise self._problem(line, f"{what}: `spans` is not a list of [start, end]", kind)
        end_of_last = 0
        for span in spans:
            if not (isinstance(span, list) and len(span) == 2 and all(type(v) is int for v in span)):
                raise self._problem(line, f"{what}: span {shown(span)} is not [start, end]", kind)
            start, end = span
            if not end_of_last <= start < end <= len(caption) or not caption[start:end].strip():
                limits = f"the caption (0..{len(caption)})"
                message = f"{what}: span {shown(span)} is empty, unordered or outside {limits}"
                raise self._problem(line, message, kind)
            end_of_last = end
        found = " ".join(caption[start:end] for start, end in spans)
        if text is not None and (not isinstance(text, str) or canonical(text) != canonical(found)):
            raise self._problem(
                line, f"{what}: its span holds {shown(found)}, its text says {shown(text)}", kind
            )
        return Phrase(spans=tuple((start, end) for start, end in spans))

    def _check_mask_entry(self, line: int, what: str, entry: dict[str, Any]) -> None:
        mask = entry.get("mask")
        if "mask" in entry and mask is None and self.allow_empty:
            return
        if not isinstance(mask, dict) or len(mask) != 1 or next(iter(mask)) not in _MASK_KEYS:
            raise self._problem(line, f"{what}: `mask` must have one of {', '.join(_MASK_KEYS)}", "bad mask")
        kind, value = next(iter(mask.items()))
        try:
            if kind == "polygon":
                check_polygons(value)
            elif kind == "png":
                existing_file(self.image_dir, value, "mask file")
            elif not isinstance(value, dict):
                raise FieldError("an RLE is an object with `size` and `counts`")
        except FieldError as error:
            raise self._problem(line, f"{what}: {error}", "bad mask") from error

    def _read(self, record: _Record) -> Sample:
        image = self._load_image(record.image_path, f"{self.file.name} line {record.line}")
        size = (image.shape[0], image.shape[1])
        masks = [self._decode_mask(record, number, mask, size) for number, mask in enumerate(record.masks)]
        for number, box in enumerate(record.boxes):
            if box is not None and not (
                0 <= box[0] and 0 <= box[1] and box[2] <= size[1] and box[3] <= size[0]
            ):
                message = f"phrase {number}: `box` {box} leaves the image of {size[0]} x {size[1]} (H x W)"
                raise self._problem(record.line, message, "bad box")
        return Sample(
            record_id=record.record_id,
            image=image,
            text=record.caption,
            phrases=record.phrases,
            masks=np.stack(masks),
            prompt=record.prompt,
            image_id=str(record.image_path),
            meta={"line": record.line, "boxes_xyxy": list(record.boxes), "absent": list(record.absent)},
        )

    def _decode_mask(self, record: _Record, number: int, entry: Any, size: tuple[int, int]) -> np.ndarray:
        if entry is None:
            return np.zeros(size, dtype=bool)
        kind, value = next(iter(entry.items()))
        try:
            if kind == "png":
                mask = read_mask_png(self.image_dir / value, size, record.record_id)
            else:
                mask = decode_segmentation(value, size)
        except RecordError as error:
            problem = error.problem
            message = (
                f"phrase {number}: {problem.message} ({problem.file}: {problem.remedy})"
                if problem
                else str(error)
            )
            raise self._problem(record.line, message, problem.kind if problem else "bad mask") from error
        except FieldError as error:
            message = f"phrase {number}: mask cannot be decoded ({error})"
            raise self._problem(record.line, message, "bad mask") from error
        if not mask.any() and not self.allow_empty:
            raise self._problem(record.line, f"phrase {number}: its mask is empty", "empty mask")
        return mask
