"""LLaVA's conversations about images as questions with answers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from flmm_detseg.datasets.base import GroundingDataset
from flmm_detseg.datasets.files import existing_file, load_json, require_dir, require_keys, require_list
from flmm_detseg.datasets.image_ids import ImageIds, read_images
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
from flmm_detseg.errors import ConfigError
from flmm_detseg.registry import DATASETS
from flmm_detseg.structures import Sample
from flmm_detseg.utils.paths import find
from flmm_detseg.utils.values import FieldError, check_text, check_words, printable, shown

TURNS = ("random", "all", "first")
_PLACEHOLDER = "<image>"
_LEADING = re.compile(rf"(?:{_PLACEHOLDER}\s*)+(?!.*{_PLACEHOLDER})", re.DOTALL)
_HUMAN, _MODEL = ("human", "user"), ("gpt", "assistant")


@dataclass(frozen=True, slots=True)
class _Record:
    record_id: str
    number: int  # of the conversation among the usable ones: the random draw's key
    images: PromptImages
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    turn: int | None  # None: drawn per epoch
    regions: tuple[tuple[RegionField, ...], ...]  # of each question


@DATASETS.register_module()
class LLaVAInstructDataset(GroundingDataset):
    """LLaVA-Instruct-150K / 665K and files of the same form: one question and its answer per sample.

    Samples have ``task="vqa"``, the question as ``prompt`` and the answer as ``text``. Each turn stands alone: earlier
    turns are not part of the prompt. The ``<image>`` placeholder is removed (every family's adapter puts its own).
    A question may say what it points at, ``"regions": [[x, y] | [x0, y0, x1, y1] | RLE, ...]`` beside its ``"value"``,
    in pixels of the image (RLE: COCO's run lengths of a mask): as many as it has places for them (``<region>``), in
    order. Whether they lie in the image is found when it is read.
    ``"image"`` may be a list, whose placeholders begin the first question; ``"modalities"`` says what each is
    (``["rgb", "depth"]``), for LMMs with a projector of their own for some. Conversations without an image are dropped
    and counted (``dropped["no image"]``).

    Args:
        file: JSON list of ``{"id", "image", "conversations": [{"from": "human" | "gpt", "value"}, ...]}``.
        image_dir: Folder that ``image`` starts from.
        turns: ``"random"``: one sample per conversation, its turn drawn per epoch, a function of (``seed``, epoch,
            conversation) alone; ``"all"``: one sample per turn; ``"first"``: the first turn only.
        exclude_image_ids: COCO image ids that must not come up (``dropped["excluded image"]``); an image's id is the
            12-digit number its name ends in.
        exclude_image_ids_file: One file or several with such ids: a COCO JSON (for example ``instances_val2017.json``),
            a JSON list, ``refs(*).p`` of RefCOCO (all splits but train), or a text with one id per line.
        seed: Of the random draw.
        policy: ``"raise"`` | ``"skip"`` for conversations that cannot be used.
        verify_images: Decode every image at construction, so that ``policy="skip"`` covers them too.
        name: First part of record ids.
        region_token: What stands for a region in questions: the ``token`` of the LMM's part.
        region_coordinates: Arguments of :class:`~flmm_detseg.datasets.region_coordinates.RegionCoordinates`, which
            writes coordinates before each region's place; None: the question as it is.

    Raises:
        DataError: A file is missing or of another kind, or (``policy="raise"``) a conversation is unusable.
        ConfigError: ``turns`` has another value, or ``region_token`` or ``region_coordinates`` cannot be used.

    Source: Liu et al., Visual Instruction Tuning, NeurIPS 2023 (arXiv 2304.08485).
    """

    def __init__(
        self,
        file: str,
        image_dir: str,
        turns: str = "random",
        exclude_image_ids: Sequence[int] = (),
        exclude_image_ids_file: str | Sequence[str] | None = None,
        seed: int = 0,
        policy: str = "raise",
        verify_images: bool = False,
        name: str = "llava",
        region_token: str = "<region>",
        region_coordinates: RegionCoordinates | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(policy)
        if turns not in TURNS:
            raise ConfigError(f"`turns` is {turns!r}; allowed: {', '.join(TURNS)}")
        self.file = find(file)
        self.annotation_files = (self.file,)
        self.image_dir = require_dir(image_dir, "image folder")
        self.turns, self.seed, self.name = turns, seed, name
        self.region_token = region_token_argument(region_token)
        self.region_coordinates = RegionCoordinates.of(region_coordinates)
        excluded = read_images(exclude_image_ids_file, exclude_image_ids)
        self.records = self._read_records(excluded)
        self._finish(verify_images, str(self.file))

    def phrase_texts(self, index: int) -> tuple[str, list[str]]:
        """Image id of a record; it has no phrases."""
        return str(self.records[index].images.path), []

    def _read_records(self, excluded: ImageIds) -> list[_Record]:
        entries = require_list(load_json(self.file, "conversation file"), "conversations", self.file)
        records: list[_Record] = []
        find = cache(existing_file)  # many conversations are about one image
        number = 0
        remedy = "Mend the file, or use policy='skip' to leave such conversations out."
        for position, entry in enumerate(entries):
            named = isinstance(entry, dict) and entry.get("id") is not None
            name = _shown_id(entry["id"]) if named else ""
            where = f"entry {position} (id {name})" if named else f"entry {position}"
            stem = f"{self.name}/{position}-{name}".rstrip("-")
            with self._reading(self.file, where, remedy):
                require_keys(entry, ("conversations",), self.file, where)
                if not entry.get("image"):
                    self._log.drop("no image", stem)
                    continue
                names = image_names(entry["image"])
                if any(excluded.holds(None, name) for name in names):
                    self._log.drop("excluded image", stem)
                    continue
                questions, answers = self._read_turns(entry["conversations"], len(names))
                regions = self._read_regions(entry, questions, answers)
                images = find_images(entry, self.image_dir, find)
                for suffix, turn in self._choices(len(questions)):
                    records.append(_Record(stem + suffix, number, images, questions, answers, turn, regions))
                number += 1
        return records

    def _read_regions(
        self, entry: dict[str, Any], questions: Sequence[str], answers: Sequence[str]
    ) -> tuple[tuple[RegionField, ...], ...]:
        """Of each question; raises FieldError unless it has a place for each."""
        found = []
        for number, turn in enumerate(entry["conversations"]):
            try:
                if number % 2 == 0:
                    found.append(read_regions(turn.get("regions")))
                    texts = questions[number // 2], [answers[number // 2]]
                    check_places(*texts, len(found[-1]), self.region_token)
                elif turn.get("regions"):
                    raise FieldError("an answer has `regions`; they belong beside the `value` of a question")
            except FieldError as error:
                raise FieldError(f"conversations[{number}]: {error}", error.kind) from error
        return tuple(found)

    def _choices(self, num_turns: int) -> list[tuple[str, int | None]]:
        if self.turns == "all":
            return [(f"/turn-{turn}", turn) for turn in range(num_turns)]
        return [("", None if self.turns == "random" else 0)]

    def _read_turns(self, conversations: Any, images: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Questions and answers of a conversation; raises FieldError unless they take turns and say something."""
        kind = "malformed conversation"
        if not isinstance(conversations, list) or not conversations or len(conversations) % 2:
            message = "`conversations` must be a list of questions and answers in turn"
            raise FieldError(message, kind)
        texts = []
        for number, turn in enumerate(conversations):
            roles = _MODEL if number % 2 else _HUMAN
            place = f"conversations[{number}]"
            if not isinstance(turn, dict) or turn.get("from") not in roles:
                raise FieldError(f"{place}: `from` must be {roles[0]!r}", kind)
            try:
                value = check_text(turn.get("value"), "value")
            except FieldError as error:
                raise FieldError(f"{place}: {error}", kind) from error
            placeholders = value.count(_PLACEHOLDER)
            if placeholders > (images if number == 0 else 0):
                allowed = "one" if images == 1 else f"{images}"
                message = f"{place}: {placeholders} times {_PLACEHOLDER}; {allowed} in the first question is allowed"
                raise FieldError(message, kind)
            text = value.replace(_PLACEHOLDER, "").strip()
            if images > 1 and placeholders and not _LEADING.match(value.strip()):
                message = (
                    f"{place}: {_PLACEHOLDER} within the words; several images stand before the question"
                )
                raise FieldError(message, kind)
            if not text:
                raise FieldError(f"{place}: `value` is empty", kind)
            texts.append(check_words(text, f"{place}: value"))
        return tuple(texts[::2]), tuple(texts[1::2])

    def question_and_answer(self, index: int) -> tuple[str, str]:
        """Question and answer of a record in the current epoch, without reading its image."""
        record = self.records[index]
        turn = self._turn(record)
        return record.questions[turn], record.answers[turn]

    def _turn(self, record: _Record) -> int:
        if record.turn is not None:
            return record.turn
        rng = np.random.default_rng((self.seed, self.epoch, record.number))
        return int(rng.integers(len(record.questions)))

    def _read(self, record: _Record) -> Sample:
        turn = self._turn(record)
        image = self._load_image(record.images.path, record.record_id)
        size, coordinates = image.shape[:2], self.region_coordinates
        question, regions = record.questions[turn], load_regions(record.regions[turn], size)
        if coordinates is not None:
            question = coordinates.write(question, regions, [size], self.region_token)
        return Sample(
            record_id=record.record_id,
            image=image,
            text=record.answers[turn],
            phrases=(),
            prompt=question,
            image_id=str(record.images.path),
            task="vqa",
            more_images=self._load_more(record.images.more, record.record_id),
            modalities=record.images.modalities,
            regions=regions,
            meta={"turn": turn},
        )


def _shown_id(value: Any) -> str:
    return printable(value, 200) if isinstance(value, str) else shown(value)
