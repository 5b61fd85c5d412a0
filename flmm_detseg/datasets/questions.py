"""Questions with reference answers, one JSON object a line, as LLaVA's evaluation files have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flmm_detseg.datasets.base import GroundingDataset
from flmm_detseg.datasets.files import parse_line, require_dir, require_file, words_argument
from flmm_detseg.datasets.prompt_fields import (
    PromptImages,
    RegionField,
    check_places,
    find_images,
    image_names,
    load_regions,
    read_regions,
    region_token_argument,
)
from flmm_detseg.datasets.region_coordinates import RegionCoordinates
from flmm_detseg.registry import DATASETS
from flmm_detseg.structures import Sample
from flmm_detseg.utils.values import FieldError, check_text, check_words, identifier, is_number, shown

_LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True, slots=True)
class _Record:
    record_id: str
    question_id: Any
    images: PromptImages
    text: str
    references: tuple[str, ...]
    choices: tuple[str, ...]
    kind: str | None
    stream: dict[str, Any]
    regions: tuple[RegionField, ...]


@DATASETS.register_module()
class QuestionDataset(GroundingDataset):
    """Questions about images, for evaluation.

    A line is ``{"question_id", "image", "text"}`` with one of ``"answers"`` (VQAv2: of all annotators, texts or
    ``{"answer": text}``), ``"answer"`` or ``"label"`` (POPE), optionally ``"choices"`` and ``"category"``. With choices
    the answer is the letter or the number, from 0, of the right one, and ``text`` already lists them. Samples have
    ``task="vqa"``, the question as ``prompt``, the first reference that is not empty as ``text``; ``meta`` holds
    ``question_id``, ``references``, ``choices``, ``kind``.

    Frames of a stream may say more: ``"session"``, its name, and ``"boxes"``, ``[[x0, y0, x1, y1], ...]`` in the
    image's pixels (half-open), what is object rather than background in them. They go to ``meta["session"]`` and
    ``meta["objects_xyxy"]``, where the background cache looks for them.

    ``"regions"``, ``[[x, y] | [x0, y0, x1, y1] | RLE, ...]`` in the image's pixels, are what the question points at
    (RLE: COCO's run lengths of a mask, ``{"size": [H, W], "counts": ...}``): as many as it has places for them
    (``<region>``), in order; for LMMs with a part that reads them. Whether they lie in the image is found when it is
    read.

    ``"image"`` may be a list: all of them stand before the question, which is about the first one. ``"modalities"``
    says what each is (``["rgb", "depth"]``), for LMMs with a projector of their own for some.

    Args:
        file: JSONL file.
        image_dir: Folder that ``image`` starts from.
        prompt_suffix: Put after each question and a line break, e.g. LLaVA's ``"Answer the question using a single
            word or phrase."``; empty: nothing.
        policy: ``"raise"`` | ``"skip"`` for lines that cannot be used.
        verify_images: Decode every image at construction, so that ``policy="skip"`` covers them too.
        name: First part of record ids.
        region_token: What stands for a region in questions: the ``token`` of the LMM's part.
        metric: How answers are scored, of :data:`~flmm_detseg.evaluation.vqa.VQA_METRICS`; None: by the question.
        region_coordinates: Arguments of :class:`~flmm_detseg.datasets.region_coordinates.RegionCoordinates`, which
            writes coordinates before each region's place; None: the question as it is.

    Raises:
        DataError: The file is missing, or (``policy="raise"``) a line is unusable; names file and line.
        ConfigError: ``prompt_suffix``, ``region_token`` or ``region_coordinates`` cannot be used.
    """

    def __init__(
        self,
        file: str,
        image_dir: str,
        prompt_suffix: str = "",
        policy: str = "raise",
        verify_images: bool = False,
        name: str = "question",
        region_token: str = "<region>",
        metric: str | None = None,
        region_coordinates: RegionCoordinates | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(policy)
        self.file = require_file(file, "question file")
        self.annotation_files = (self.file,)
        self.image_dir = require_dir(image_dir, "image folder")
        self.prompt_suffix, self.name = words_argument(prompt_suffix, "prompt_suffix"), name
        self.region_token = region_token_argument(region_token)
        self.region_coordinates = RegionCoordinates.of(region_coordinates)
        self.metric = metric
        remedy = "Mend the line, or use policy='skip' to leave such lines out."
        self.records = self._read_lines(self.file, remedy, self._read_line)
        self._finish(verify_images, str(self.file))

    def phrase_texts(self, index: int) -> tuple[str, list[str]]:
        """Image id of a record; it has no phrases."""
        return str(self.records[index].images.path), []

    def _read_line(self, number: int, line: bytes) -> _Record:
        entry = parse_line(line)
        image_names(entry.get("image"))  # first: what is most often forgotten
        if not isinstance(entry.get("text"), str) or not entry["text"].strip():
            raise FieldError("`text` is missing or not a text", "missing key")
        if entry.get("question_id") is None:
            raise FieldError("`question_id` is missing", "missing key")
        question_id = identifier(entry["question_id"], "question_id")
        images = find_images(entry, self.image_dir)
        choices = [] if entry.get("choices") is None else entry["choices"]
        if not _are_texts(choices) or len(choices) > len(_LETTERS):
            raise FieldError("`choices` must be a list of at most 10 texts")
        choices = [check_text(choice, "choices") for choice in choices]
        text = check_words(check_text(entry["text"], "text").replace("<image>", "").strip(), "text")
        if not text:
            raise FieldError("`text` is no question: nothing but <image>", "bad text")
        text = f"{text}\n{self.prompt_suffix}" if self.prompt_suffix else text
        references, regions = self._references(entry, choices), read_regions(entry.get("regions"))
        check_places(text, references, len(regions), self.region_token)
        return _Record(
            record_id=f"{self.name}/{question_id}",
            question_id=question_id,
            images=images,
            text=text,
            references=references,
            choices=tuple(choices),
            kind=None if entry.get("category") is None else str(identifier(entry["category"], "category")),
            stream=self._read_stream(entry),
            regions=regions,
        )

    def _read_stream(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Fields of the line about the stream that its image is a frame of."""
        stream: dict[str, Any] = {}
        if entry.get("session") is not None:
            stream["session"] = str(identifier(entry["session"], "session"))
        if (boxes := entry.get("boxes")) is not None:
            if not isinstance(boxes, list) or not all(_is_box(box) for box in boxes):
                message = "`boxes` must be a list of [x0, y0, x1, y1] with x0 < x1 and y0 < y1"
                raise FieldError(message)
            stream["objects_xyxy"] = boxes
        return stream

    def _references(self, entry: dict[str, Any], choices: list[str]) -> tuple[str, ...]:
        given = entry.get("answers", entry.get("answer", entry.get("label")))
        if choices and type(given) is int and 0 <= given < len(choices):
            return (_LETTERS[given],)
        answers = given if isinstance(given, list) else [given]
        answers = [answer.get("answer") if isinstance(answer, dict) else answer for answer in answers]
        texts = [answer for answer in answers if isinstance(answer, str)]
        # One of several people may give no answer (VizWiz); the metric counts it as one that agrees with no other.
        if len(texts) < len(answers) or not any(map(str.strip, texts)):
            message = "no reference: `answers`, `answer` or `label` must be a text or a list of texts"
            raise FieldError(message, "missing key")
        texts = [check_words(text, "answer") for text in texts]
        if choices and any(text.strip().upper() not in _LETTERS[: len(choices)] for text in texts):
            message = f"answer {shown(texts[0])} is not the letter of one of {len(choices)} choices"
            raise FieldError(message)
        return tuple(texts)

    def _read(self, record: _Record) -> Sample:
        image = self._load_image(record.images.path, record.record_id)
        size, coordinates = image.shape[:2], self.region_coordinates
        text, regions = record.text, load_regions(record.regions, size)
        if coordinates is not None:
            text = coordinates.write(text, regions, [size], self.region_token)
        return Sample(
            record_id=record.record_id,
            image=image,
            text=next(filter(str.strip, record.references)),
            phrases=(),
            prompt=text,
            image_id=str(record.images.path),
            task="vqa",
            more_images=self._load_more(record.images.more, record.record_id),
            modalities=record.images.modalities,
            regions=regions,
            meta={
                "question_id": record.question_id,
                "references": list(record.references),
                "choices": list(record.choices),
                "kind": record.kind,
                **record.stream,
            },
        )


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) and value.strip() for value in values)


def _is_box(box: Any) -> bool:
    numbers = isinstance(box, list) and len(box) == 4 and all(map(is_number, box))
    return numbers and box[0] < box[2] and box[1] < box[3]
