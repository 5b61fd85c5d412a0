"""GranD-f: captions whose phrases have masks, in the forms that GLaMM's files come in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flmm_detseg.datasets.base import GroundingDataset
from flmm_detseg.datasets.files import (
    existing_file,
    list_of,
    load_json,
    require_dir,
    require_keys,
    words_argument,
)
from flmm_detseg.datasets.masks import check_parts, decode_parts
from flmm_detseg.datasets.policy import record_error
from flmm_detseg.errors import DataError
from flmm_detseg.language.segment_names import MASK_TOKEN
from flmm_detseg.language.words import canonical, find_words
from flmm_detseg.registry import DATASETS
from flmm_detseg.structures import Phrase, Sample
from flmm_detseg.utils.paths import find
from flmm_detseg.utils.values import FieldError, check_text, check_words, flag, identifier, integer, shown

# A phrase may hold anything but another tag.
_TAGGED = re.compile(rf"<p>((?:(?!</?p>).)*)</p>\s*{re.escape(MASK_TOKEN)}", re.DOTALL)
_REMEDY = "Mend the file, or use policy='skip' to leave such captions out."


@dataclass(frozen=True, slots=True)
class _Grounding:
    """A phrase of a caption, and its mask as in the file."""

    span: tuple[int, int]
    segmentation: Any


@dataclass(frozen=True, slots=True)
class _Record:
    record_id: str
    path: Path
    caption: str
    groundings: tuple[_Grounding, ...]


@DATASETS.register_module()
class GranDfDataset(GroundingDataset):
    """Grounded captions (GCG): the text is a caption, its phrases have masks.

    Samples are like those of PNG (``task="phrase"``), so every head of phrases reads them;
    ``SegAnswers(dataset=..., form="captions")`` makes answers with ``[SEG]`` of them. The published forms differ
    by their keys:

    - ``GranDf_HA_GCG_*.json``, ``OpenPsgGCG_*.json``: ``[{"file_name", "caption", "groundings": {phrase:
      {"token_positives": [start, end], "rle_masks": [RLE, ...]}}}]``;
    - ``RefCOCOg_GCG_*.json``: ``[{"img_file_name", "caption", "refs": [{"sentence", "segmentation"}]}]``; sentences
      that the caption does not have are left out (``dropped["phrase not in its caption"]``);
    - ``flickr_mergedGT_GCG_*.json``: ``{"images": [{"id", "file_name", "caption"}], "annotations": [{"image_id",
      "tokens_positive": [[start, end], ...], "sam_mask": RLE}]}``; annotations with ``ignore`` are not used;
    - tagged captions, as GLaMM answers: ``[{"file_name", "caption": "<p> A man </p> [SEG] ...", "masks": [...]}]``, a
      mask (RLE or polygons) for each tag. The tags are taken out of the text.

    Positions count from the caption without surrounding quotes and blanks. Where they do not hold the phrase, its first
    place in the caption is taken. Captions without a phrase are left out (``dropped["no phrase"]``).

    Args:
        file: The JSON file.
        image_dir: Folder that file names start from.
        policy: ``"raise"`` | ``"skip"`` for captions that cannot be used (the caption is the unit skipped).
        prompt: The user's question of every sample; None: the LMM adapter's default.
        verify_images: Decode every image and mask at construction, so that ``policy="skip"`` covers them too.
        name: First part of record ids.

    Raises:
        DataError: The file is missing or of another kind, or (``policy="raise"``) a caption is unusable.
        ConfigError: ``prompt`` cannot be used.

    Source: Rasheed et al., GLaMM: Pixel Grounding Large Multimodal Model, CVPR 2024 (arXiv 2311.03356).
    """

    def __init__(
        self,
        file: str,
        image_dir: str,
        policy: str = "raise",
        prompt: str | None = None,
        verify_images: bool = False,
        name: str = "grandf",
    ) -> None:
        super().__init__(policy)
        self.file = find(file)
        self.annotation_files = (self.file,)
        self.image_dir = require_dir(image_dir, "image folder")
        self.prompt, self.name = words_argument(prompt, "prompt"), name
        self.records = self._read_records()
        self._finish(verify_images, str(self.file))

    def phrase_texts(self, index: int) -> tuple[str, list[str]]:
        """Image id and phrase texts of a record, without reading its image."""
        record = self.records[index]
        return str(record.path), [record.caption[slice(*grounding.span)] for grounding in record.groundings]

    def _read_records(self) -> list[_Record]:
        content = load_json(self.file, "GranD-f file")
        if isinstance(content, dict):
            content = list(self._flickr_entries(content))
        records: list[_Record] = []
        if not isinstance(content, list):
            raise DataError(f"{self.file}: expected a list of captions, got {type(content).__name__}.")
        for position, entry in enumerate(content):
            with self._reading(self.file, f"caption {position}", _REMEDY):
                record = self._read_entry(position, entry)
                if record.groundings:
                    records.append(record)
                else:
                    self._log.drop("no phrase", record.record_id)
        return records

    def _flickr_entries(self, content: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The form with images and annotations, an entry an image."""
        require_keys(content, ("images", "annotations"), self.file)
        images: dict[int | str, dict[str, Any]] = {}

        def add_image(image: Any, place: str) -> None:
            require_keys(image, ("id", "file_name", "caption"), self.file, place)
            images[identifier(image["id"], "id")] = {**image, "annotations": []}

        def add_annotation(annotation: Any, place: str) -> None:
            require_keys(annotation, ("image_id", "tokens_positive", "sam_mask"), self.file, place)
            image = images.get(identifier(annotation["image_id"], "image_id"))
            if image is None:
                raise FieldError(f"image {shown(annotation['image_id'])} is not in `images`", "unknown image")
            if not flag(annotation.get("ignore") or False, "ignore"):
                image["annotations"].append(annotation)

        self._read_entries(self.file, "images", content["images"], add_image)
        self._read_entries(self.file, "annotations", content["annotations"], add_annotation)
        yield from images.values()

    def _read_entry(self, position: int, entry: Any) -> _Record:
        require_keys(entry, ("caption",), self.file, f"caption {position}")
        record_id = f"{self.name}/{position}"
        caption = check_words(check_text(entry["caption"], "caption").strip().strip('"').strip(), "caption")
        spans: list[tuple[int, int]] = []
        if "masks" in entry:
            caption, spans = _untag(caption)
        name = entry.get("img_file_name") if "refs" in entry else entry.get("file_name")
        path = existing_file(self.image_dir, name, "img_file_name" if "refs" in entry else "file_name")
        if "groundings" in entry:
            found = list(_by_phrase(caption, entry["groundings"]))
        elif "refs" in entry:
            found = list(self._by_sentence(caption, entry["refs"], record_id))
        elif "annotations" in entry:
            found = [
                _Grounding(_span(caption, None, a["tokens_positive"]), a["sam_mask"])
                for a in entry["annotations"]
            ]
        elif "masks" in entry:
            masks = list_of(entry["masks"], "masks")
            if len(masks) != len(spans):
                raise FieldError(f"{len(masks)} `masks` for {len(spans)} tagged phrases")
            found = [_Grounding(span, mask) for span, mask in zip(spans, masks)]
        else:
            raise FieldError("it has none of `groundings`, `refs`, `masks`", "missing key")
        for grounding in found:
            _check_mask_form(grounding)
        return _Record(record_id, path, caption, tuple(sorted(found, key=lambda item: item.span)))

    def _by_sentence(self, caption: str, refs: Any, record_id: str) -> Iterator[_Grounding]:
        for number, ref in enumerate(list_of(refs, "refs")):
            require_keys(ref, ("sentence", "segmentation"), self.file, f"refs[{number}]")
            places = find_words(caption, check_text(ref["sentence"], "sentence", empty=False))
            if places:
                yield _Grounding(places[0], ref["segmentation"])
            else:
                self._log.drop("phrase not in its caption", f"{record_id}/{number}")

    def _read(self, record: _Record) -> Sample:
        image = self._load_image(record.path, record.record_id)
        size = (image.shape[0], image.shape[1])
        masks = np.zeros((len(record.groundings), *size), dtype=bool)
        for number, grounding in enumerate(record.groundings):
            try:
                masks[number] = decode_parts(grounding.segmentation, size)
                if not masks[number].any():
                    raise FieldError("it is empty", "empty mask")
            except FieldError as error:
                phrase = record.caption[slice(*grounding.span)]
                message = f"mask of {shown(phrase)}: {error}"
                raise record_error(str(self.file), record.record_id, message, _REMEDY, error.kind) from error
        return Sample(
            record_id=record.record_id,
            image=image,
            text=record.caption,
            phrases=tuple(Phrase(spans=(grounding.span,)) for grounding in record.groundings),
            masks=masks,
            prompt=self.prompt,
            image_id=str(record.path),
        )


def _by_phrase(caption: str, groundings: Any) -> Iterator[_Grounding]:
    if not isinstance(groundings, dict):
        raise FieldError(f"`groundings` is {shown(groundings)}, not an object of phrases")
    for phrase, value in groundings.items():
        if not isinstance(value, dict) or "rle_masks" not in value:
            raise FieldError(f"`groundings` of {shown(phrase)} has no `rle_masks`", "missing key")
        yield _Grounding(_span(caption, phrase, value.get("token_positives")), value["rle_masks"])


def _untag(caption: str) -> tuple[str, list[tuple[int, int]]]:
    """A caption without its tags, and where the tagged phrases stand in it."""
    plain, start = "", 0
    spans: list[tuple[int, int]] = []

    def add(words: str) -> None:
        nonlocal plain
        words = " ".join(words.split())
        joined = plain and words and words[0] not in ".,;:!?"
        plain += f" {words}" if joined else words

    for match in _TAGGED.finditer(caption):
        add(caption[start : match.start()])
        add(match[1])
        if not (length := len(" ".join(match[1].split()))):
            raise FieldError("`caption` has a tag without words", "bad tag")
        spans.append((len(plain) - length, len(plain)))
        start = match.end()
    add(caption[start:])
    if left := next((tag for tag in ("<p>", "</p>", MASK_TOKEN) if tag in plain), None):
        raise FieldError(
            f"`caption` has a {left} that belongs to no `<p> phrase </p> {MASK_TOKEN}`", "bad tag"
        )
    return plain, spans


def _span(caption: str, phrase: str | None, positions: Any) -> tuple[int, int]:
    """Where a phrase stands: at its positions (``[start, end]``, or the first of several) if they hold it."""
    if isinstance(positions, list) and positions and isinstance(positions[0], list):
        positions = positions[0]
    if isinstance(positions, list) and len(positions) == 2:
        start, end = (integer(value, "token_positives") for value in positions)
        held = caption[start:end] if 0 <= start < end <= len(caption) else ""
        if held.strip() and (phrase is None or canonical(held).lower() == canonical(phrase).lower()):
            return start, end
    places = find_words(caption, phrase) if phrase else []
    if not places:
        message = f"{shown(phrase)} is neither at {shown(positions)} nor elsewhere in the caption"
        raise FieldError(message, "span does not match")
    return places[0]


def _check_mask_form(grounding: _Grounding) -> None:
    """Checks what can be checked without the size of the image, so that the fault is found before a training."""
    value = grounding.segmentation
    first = value[0] if isinstance(value, list) and value else value
    if isinstance(first, dict) and isinstance(first.get("size"), list) and len(first["size"]) == 2:
        check_parts(value, (first["size"][0], first["size"][1]))
    else:
        check_parts(value, (1, 1))
