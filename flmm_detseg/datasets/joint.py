"""Joint samples: what a detection or segmentation data set shows, as an answer in words, boxes and masks."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from flmm_detseg.datasets.base import GroundingDataset, SharedInt
from flmm_detseg.datasets.derived import DerivedDataset, build_reader
from flmm_detseg.datasets.files import words_argument
from flmm_detseg.datasets.llava_instruct import LLaVAInstructDataset
from flmm_detseg.datasets.policy import Problem
from flmm_detseg.datasets.semantic_maps import IGNORE
from flmm_detseg.errors import ConfigError
from flmm_detseg.language import (
    TASK_TOKENS,
    BoxItem,
    JointAnswer,
    MaskItem,
    SerialisedAnswer,
    SerialiseOptions,
    TextFormat,
    quantise_boxes,
)
from flmm_detseg.language import text_format as build_text_format
from flmm_detseg.language.segment_names import MASK_TOKEN
from flmm_detseg.registry import DATASETS
from flmm_detseg.structures import DenseTargets, Phrase, Sample


class _Mask(NamedTuple):
    """A mask to write: of which object (None: of a class), its name, bool ``[H, W]``, what the text says of it."""

    item: int | None
    label: str
    pixels: np.ndarray
    in_text: MaskItem | None


@DATASETS.register_module()
class JointDataset(DerivedDataset):
    """Turns the samples of a dense reader into ``task="joint"`` samples with the joint template as text.

    ``Answer: ...`` comes from a conversation about the same image, ``Detections: ...`` from the boxes,
    ``Segmentations: ...`` from the instance masks, or from the semantic map (one mask per class that is there, largest
    first). Objects stand in the same order in both; crowd regions are not written. Which sections are wanted stands in
    the prompt. The samples keep their ``dense`` targets, so dense heads may read them too; ``sections`` holds the
    sections' spans. With ``mask_form="seg"`` the k-th mask token belongs to the k-th phrase and mask; the phrase's span
    is the item's label with ``<SEG>``, the token itself with ``[SEG]``. Masks that stand in the text are words like all
    others: their samples have no phrases.

    A list that is cut teaches the model not to end. So whole objects, the smallest ones, are left out until the text
    has ``max_characters``; :meth:`report` counts them (``left_out``).

    Args:
        dataset: A reader of boxes or label maps, or its config.
        sections: Sections to write: ``"answer"``, ``"detections"``, ``"segmentations"``.
        answers: A :class:`~flmm_detseg.datasets.LLaVAInstructDataset` (or its config) that gives question and answer;
            exactly with the section ``"answer"``. Images without a conversation are dropped (``dropped["no answer"]``);
            of several conversations, one is drawn per epoch.
        question: The user's words in samples without an answer; None: those of the text format.
        box_order: ``"area"`` (largest first) or ``"raster"``.
        max_boxes: More boxes than that lose the smallest ones.
        max_masks: More masks than that lose the last ones.
        mask_form: ``"text"``: the mask itself, as the text format writes masks: outlines unless it says otherwise (a
            mask of which nothing is left, such as a thin one, is left out). ``"seg"``: a mask token per mask. ``[SEG]``
            is read by heads for task ``"reasoning"``, ``<SEG>`` by a head of your own that reads the phrases' states:
            none here does.
        max_points: Points of each outline at most.
        max_characters: Longest text, as far as leaving objects out can make it shorter (one stays, and so do the words
            of an answer). LLaMA's tokenizer needs at most a token a character: 3000 fit into LLaVA-1.5's 4096 tokens
            beside the image and a question.
        seed: Of the random draw.
        text_format: How answers are asked for and written, see :func:`~flmm_detseg.language.formats.text_format`.

    Raises:
        ConfigError: A section is unknown, or the text format has none such; the reader does not give what it needs; the
            question or a class name holds a control word.
    """

    def __init__(
        self,
        dataset: GroundingDataset | Mapping[str, Any],
        sections: Sequence[str] = ("detections",),
        answers: LLaVAInstructDataset | Mapping[str, Any] | None = None,
        question: str | None = None,
        box_order: Literal["area", "raster"] = "area",
        max_boxes: int = 100,
        max_masks: int = 100,
        mask_form: Literal["seg", "text"] = "text",
        max_points: int = 24,
        max_characters: int = 3000,
        seed: int = 0,
        text_format: str | Mapping[str, Any] | TextFormat = "template",
    ) -> None:
        super().__init__(dataset)
        self.text_format = build_text_format(text_format)
        self.answers = None if answers is None else build_reader(answers)
        self.sections, self.seed = tuple(sections), seed
        self.question = self.text_format.objects_question if question is None else question
        self.options = SerialiseOptions(box_order=box_order, max_boxes=max_boxes, max_masks=max_masks)
        if mask_form not in ("seg", "text"):
            raise ConfigError(f"`mask_form` is {mask_form!r}; allowed: seg, text")
        if max_characters < 1:
            raise ConfigError(f"`max_characters` is {max_characters}; it must be at least 1")
        self.mask_form, self.max_points, self.max_characters = mask_form, max_points, max_characters
        self._num_left_out = SharedInt()
        self._check_sections()
        self.records = list(range(len(self.dataset)))
        self._answers_of: dict[str, list[int]] = {}
        if self.answers is not None:
            self._pair_answers(self.answers)
        self._finish(False, f"joint samples of {type(self.dataset).__name__}")

    def _check_sections(self) -> None:
        if not self.sections or any(name not in TASK_TOKENS for name in self.sections):
            raise ConfigError(f"`sections` is {self.sections}; give some of {', '.join(TASK_TOKENS)}")
        self.text_format.check_sections(self.sections)
        words_argument(self.question, "question")
        if ("answer" in self.sections) != (self.answers is not None):
            raise ConfigError("`answers` and the section 'answer' belong together: give both or neither")
        if self.answers is not None and not isinstance(self.answers, LLaVAInstructDataset):
            raise ConfigError(f"`answers` must be a LLaVAInstructDataset, got {type(self.answers).__name__}")
        info = self.dataset.metainfo
        for name in (*info.get("classes", ()), *info.get("semantic_classes", ())):
            words_argument(name, "class name")
        if "detections" in self.sections and "classes" not in info:
            raise ConfigError(f"section 'detections': {type(self.dataset).__name__} gives no boxes")
        if "segmentations" in self.sections and not (
            getattr(self.dataset, "with_masks", False) or "semantic_classes" in info
        ):
            raise ConfigError(
                f"section 'segmentations': {type(self.dataset).__name__} gives neither masks (with_masks=True) nor maps"
            )

    def _pair_answers(self, answers: LLaVAInstructDataset) -> None:
        for index in range(len(answers)):
            self._answers_of.setdefault(_image_key(answers, index), []).append(index)
        kept = []
        for index in self.records:
            if _image_key(self.dataset, index) in self._answers_of:
                kept.append(index)
            else:
                self._log.drop("no answer", self.dataset.record_id(index))
        self.records = kept

    @property
    def annotation_files(self) -> tuple[Path, ...]:  # type: ignore[override]  # not to be set from outside
        """Annotation files of the reader and the answers."""
        files = self.answers.annotation_files if self.answers is not None else ()
        return (*super().annotation_files, *files)

    @property
    def problems(self) -> list[Problem]:
        """Skipped records of the reader and the answers."""
        return [*super().problems, *(self.answers.problems if self.answers is not None else ())]

    def set_epoch(self, epoch: int) -> None:
        """Selects the epoch of random choices, of the reader and the answers too."""
        super().set_epoch(epoch)
        if self.answers is not None:
            self.answers.set_epoch(epoch)

    def report(self) -> dict[str, Any]:
        """Counts, with the reports of the reader and the answers.

        ``left_out``: objects for which there was no room, in the samples read so far (by worker processes too).
        """
        parts: dict[str, Any] = {"left_out": self._num_left_out.value}
        if self.answers is not None:
            parts["answers"] = self.answers.report()
        return {**super().report(), **parts}

    def count(self, indices: Iterable[int] | None = None) -> dict[str, Any]:
        """The reader's counts of the records that became answers."""
        return self.dataset.count(
            [self.records[i] for i in (range(len(self)) if indices is None else indices)]
        )

    def record_id(self, index: int) -> str:
        """Record id of a record, without reading its image."""
        return f"joint/{self.dataset.record_id(self.records[index])}"

    def phrase_texts(self, index: int) -> tuple[str, list[str]]:
        """Image id and the names that its masks can have, without reading the image."""
        image_id, _ = self.dataset.phrase_texts(self.records[index])
        return image_id, []

    def _read(self, record: int) -> Sample:
        sample = self.dataset[record]
        dense = sample.dense
        assert dense is not None
        question, words = self.question, None
        if self.answers is not None:
            choices = self._answers_of[_image_key(self.dataset, record)]
            draw = int(np.random.default_rng((self.seed, self.epoch, record)).integers(len(choices)))
            question, words = self.answers.question_and_answer(choices[draw])
        size = sample.image_size
        boxes = self._boxes(dense, size) if dense.boxes_xyxy is not None else ()
        masks = self._masks(dense, boxes) if "segmentations" in self.sections else []
        written, shown = self._fit(words, boxes, masks, size)
        with_phrases = self.mask_form == "seg" and bool(shown)
        return replace(
            sample,
            record_id=f"joint/{sample.record_id}",
            task="joint",
            prompt=self.text_format.ask(question, self.sections),
            text=written.text,
            phrases=self._phrases(written, size) if with_phrases else (),
            masks=np.stack(shown) if with_phrases else np.zeros((0, *size), dtype=bool),
            sections=tuple(written.section_spans.values()),
        )

    def _fit(
        self, words: str | None, boxes: tuple[BoxItem, ...], masks: Sequence[_Mask], size: tuple[int, int]
    ) -> tuple[SerialisedAnswer, list[np.ndarray]]:
        """The longest answer that fits, of whole objects, and the masks in it."""
        most = max(len(boxes), len(masks), 1)
        written, shown = self._write(words, boxes, masks, size, most)
        if len(written.text) <= self.max_characters:
            return written, shown
        # How many of the limits 1, 2, ... are small enough.
        limit = bisect_right(
            range(1, most + 1),
            self.max_characters,
            key=lambda limit: len(self._write(words, boxes, masks, size, limit)[0].text),
        )
        shorter, shown = self._write(words, boxes, masks, size, max(limit, 1))
        self._num_left_out.value += _num_objects(written) - _num_objects(shorter)
        return shorter, shown

    def _write(
        self,
        words: str | None,
        boxes: tuple[BoxItem, ...],
        masks: Sequence[_Mask],
        size: tuple[int, int],
        limit: int,
    ) -> tuple[SerialisedAnswer, list[np.ndarray]]:
        """The answer with at most ``limit`` items in each section, and the masks of its items."""
        options = replace(
            self.options,
            max_boxes=min(self.options.max_boxes, limit),
            max_masks=min(self.options.max_masks, limit),
        )
        by_object = {mask.item: mask for mask in masks if mask.item is not None}
        if by_object:  # in the boxes' order, and of the same objects
            order = self.text_format.write(JointAnswer(detections=boxes), size, options).detection_order
            masks = [by_object[index] for index in order if index in by_object]
        masks = masks[: options.max_masks]
        items = tuple(
            MaskItem(mask.label, seg_index=k) if mask.in_text is None else mask.in_text
            for k, mask in enumerate(masks)
        )
        answer = JointAnswer(
            answer=words,
            detections=boxes if "detections" in self.sections else None,
            segmentations=items if "segmentations" in self.sections else None,
        )
        return self.text_format.write(answer, size, options), [mask.pixels for mask in masks]

    def _phrases(self, written: SerialisedAnswer, size: tuple[int, int]) -> tuple[Phrase, ...]:
        """Phrases of an answer's masks, in order: their tokens where a head reads these, else their labels."""
        items = written.answer.segmentations or ()
        places = self.text_format.parse(written.text, size).segmentation_spans
        if self.text_format.mask_token == MASK_TOKEN:
            return tuple(Phrase(spans=place.values) for place in places)
        return tuple(
            Phrase(spans=((place.start, place.start + len(item.label)),))
            for item, place in zip(items, places, strict=True)
        )

    def _boxes(self, dense: DenseTargets, image_size: tuple[int, int]) -> tuple[BoxItem, ...]:
        classes = self.dataset.metainfo["classes"]
        assert dense.boxes_xyxy is not None
        assert dense.labels is not None
        kept = _written_objects(dense)
        boxes = quantise_boxes(dense.boxes_xyxy[kept], image_size).tolist()
        return tuple(BoxItem(classes[label], tuple(box)) for label, box in zip(dense.labels[kept], boxes))

    def _masks(self, dense: DenseTargets, boxes: tuple[BoxItem, ...]) -> list[_Mask]:
        """Masks of the objects, else of the classes of the semantic map, largest first."""
        if dense.masks is not None:
            named = [
                (box.label, mask)
                for box, mask in zip(boxes, dense.masks[_written_objects(dense)], strict=True)
            ]
        else:
            assert dense.semantic is not None
            classes = self.dataset.metainfo["semantic_classes"]
            values, counts = np.unique(dense.semantic[dense.semantic != IGNORE], return_counts=True)
            values = values[np.argsort(-counts, kind="stable")]
            named = [(classes[value], dense.semantic == value) for value in values]
        masks = []
        for index, (label, pixels) in enumerate(named):
            in_text = None
            if self.mask_form == "text":
                in_text = self.text_format.mask_item(label, pixels, self.max_points)
                if in_text is None:
                    continue
            masks.append(_Mask(index if dense.masks is not None else None, label, pixels, in_text))
        return masks


def _written_objects(dense: DenseTargets) -> np.ndarray:
    """Which objects are written: all but crowd regions; bool ``[N]``."""
    assert dense.labels is not None
    return ~dense.crowd if dense.crowd is not None else np.ones(len(dense.labels), dtype=bool)


def _num_objects(written: SerialisedAnswer) -> int:
    return max(len(written.answer.detections or ()), len(written.answer.segmentations or ()))


def _image_key(dataset: GroundingDataset, index: int) -> str:
    """Path of a record's image in one spelling: readers may start from different folders."""
    return os.path.abspath(dataset.phrase_texts(index)[0])
