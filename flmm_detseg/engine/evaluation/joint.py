"""Evaluation of whole answers: words, boxes and masks of one text that the model writes freely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flmm_detseg.datasets.joint import JointDataset
from flmm_detseg.datasets.mask_answers import REASONING
from flmm_detseg.engine.evaluation.task import EvaluationOptions, Task
from flmm_detseg.errors import ConfigError
from flmm_detseg.evaluation.joint_metric import joint_figures
from flmm_detseg.evaluation.joint_records import answer_boxes, answer_masks
from flmm_detseg.evaluation.vqa import answer_record
from flmm_detseg.heads import head_of
from flmm_detseg.language import ParsedAnswer, draw_mask, text_format
from flmm_detseg.language.segment_names import MASK_TOKEN
from flmm_detseg.structures import CaptureSpec, Generation, Phrase, Prediction, Sample
from flmm_detseg.utils.whole_files import dump_json, write_text

_PHRASE = "phrase"


@dataclass(frozen=True)
class JointOptions(EvaluationOptions):
    """Arguments of the evaluation of whole answers, beside the common ones.

    Attributes:
        max_new_tokens: Length of an answer.
        teacher_forced: The model reads the reference answer and makes masks for it; boxes and words are not measured.
        base_prompt: What the LMM as it was is asked about each image, for boxes beside the model's; None: nothing.
        base_format: How that answer is read, one of :data:`~flmm_detseg.utils.choices.TEXT_FORMATS`.
    """

    max_new_tokens: int = 512
    teacher_forced: bool = False
    base_prompt: str | None = None
    base_format: str = "boxed_caption"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_new_tokens < 1:
            raise ConfigError(f"`max_new_tokens` is {self.max_new_tokens}; it must be at least 1")
        text_format(self.base_format)


class JointTask(Task[JointOptions]):
    """Answers to the prompts of joint data sets, read by the data set's own text format."""

    name, config_key = "joint", "joint_eval"

    def check_data(self, dataset: Any, options: JointOptions) -> None:
        """Data sets must write joint answers; teacher-forced, answers with mask tokens."""
        if not isinstance(dataset, JointDataset):
            raise ConfigError(
                f"`joint_eval` has a {type(dataset).__name__}; whole answers are measured on a JointDataset"
            )
        if options.teacher_forced and not (
            "segmentations" in dataset.sections and dataset.mask_form == "seg"
        ):
            raise ConfigError(
                "teacher-forced, only the masks of reference answers are measured: the data set needs the section "
                "'segmentations' and mask_form='seg'"
            )

    def check(self, model: Any, dataset: Any, options: JointOptions) -> None:
        """There must be a head for mask tokens that the answers hold, and the LMM as it was if it is asked."""
        if "segmentations" in dataset.sections and dataset.mask_form == "seg":
            _mask_task(model, dataset)
        if options.base_prompt is not None:
            model.retention.require_base("the answers of the LMM as it was")

    def facts(
        self, model: Any, samples: list[Sample], dataset: Any, options: JointOptions
    ) -> list[list[dict[str, Any]]]:
        """One record an image."""
        with torch.no_grad():
            if options.teacher_forced:
                return [[_read_reference(model, sample, dataset)] for sample in samples]
            # The model sees neither the reference answer nor what the image shows.
            asked = [
                replace(sample, text="", phrases=(), masks=None, dense=None, sections=())
                for sample in samples
            ]
            written = [_answer(model, sample, dataset, options) for sample in asked]
            base = self._base_boxes(model, samples, dataset, options)
        return [
            [_record(sample, dataset, *found, base_boxes=boxes)]
            for sample, found, boxes in zip(samples, written, base, strict=True)
        ]

    @staticmethod
    def _base_boxes(
        model: Any, samples: Sequence[Sample], dataset: Any, options: JointOptions
    ) -> list[dict[str, Any] | None]:
        if options.base_prompt is None or "detections" not in dataset.sections:
            return [None] * len(samples)
        form = text_format(options.base_format)
        found: list[dict[str, Any] | None] = []
        for sample in samples:
            question = replace(
                sample,
                text="",
                phrases=(),
                masks=None,
                dense=None,
                sections=(),
                task="vqa",
                prompt=options.base_prompt,
            )
            with model.lmm.base_mode():
                text = model.lmm.generate(question, max_new_tokens=options.max_new_tokens)
            parsed = form.parse(text, sample.image_size)
            boxes = answer_boxes(sample, parsed, dataset.metainfo["classes"])
            found.append({**boxes, "answer": text})
        return found

    def figures(
        self, records: Sequence[Mapping[str, Any]], dataset: Any, options: JointOptions
    ) -> dict[str, float]:
        """Figures of :func:`~flmm_detseg.evaluation.joint_metric.joint_figures`."""
        return joint_figures(records)

    def settings(self, options: JointOptions) -> dict[str, Any]:
        """How answers are made."""
        if options.teacher_forced:
            return {"teacher_forced": True}
        own: dict[str, Any] = {"teacher_forced": False, "max_new_tokens": options.max_new_tokens}
        if options.base_prompt is not None:
            own |= {"base_prompt": options.base_prompt, "base_format": options.base_format}
        return own

    def conventions(self, options: JointOptions) -> dict[str, Any]:
        """Whether the model answered itself."""
        return {"teacher_forced": options.teacher_forced}

    def file_stem(self, options: JointOptions) -> str:
        """What was read teacher-forced has a file of its own."""
        return f"{self.name}-teacher-forced" if options.teacher_forced else self.name

    def export(
        self, records: Sequence[Mapping[str, Any]], dataset: Any, stem: Path, options: JointOptions
    ) -> list[Path]:
        """Prompts and answers, one JSON object a line."""
        keys = ("record_id", "question", "answer", "expected", "missing", "truncated", "score")
        lines = [dump_json({key: record[key] for key in keys}) + "\n" for record in records]
        file = stem.with_name(f"{stem.name}-answers.jsonl")
        write_text(file, "".join(lines))
        return [file]


def _mask_task(model: Any, dataset: Any) -> str:
    """Task of the head that makes the masks: of the tokens' states, or of the attention of their names."""
    task = REASONING if dataset.text_format.mask_token == MASK_TOKEN else _PHRASE
    if head_of(model.heads, task) is None:
        raise ConfigError(
            f"the answers hold {dataset.text_format.mask_token}, but the model has no head for task {task!r} (heads: "
            f"{', '.join(model.heads)})"
        )
    return task


def _answer(
    model: Any, asked: Sample, dataset: Any, options: JointOptions
) -> tuple[Generation, ParsedAnswer, np.ndarray, list[str]]:
    """What the model writes, what that says, and its masks, bool ``[P, H, W]``, with their names."""
    form, size, longest = dataset.text_format, asked.image_size, options.max_new_tokens
    spans: dict[tuple[int, int], int] = {}
    prediction: Prediction | None = None
    with_tokens = "segmentations" in dataset.sections and dataset.mask_form == "seg"
    if with_tokens and _mask_task(model, dataset) == REASONING:
        found = model.answer_with_masks(asked, max_new_tokens=longest)
        generation, prediction = found.generation, found.prediction
        spans = {span: number for number, span in enumerate(found.spans)}
        parsed = form.parse(generation.text, size)
    elif with_tokens:
        generation = model.answer_with_states(asked, max_new_tokens=longest)
        parsed = form.parse(generation.text, size)
        named = [
            (place.values[0], (place.start, place.start + len(item.label)))
            for item, place in zip(parsed.answer.segmentations or (), parsed.segmentation_spans, strict=True)
            if item.seg_index is not None
        ]
        if named:
            phrases = tuple(Phrase((name,)) for _, name in named)
            prediction = model.predict_answer(
                replace(asked, text=generation.text, phrases=phrases, task=_PHRASE), generation
            )
            spans = {token: number for number, (token, _) in enumerate(named)}
    else:
        generation = model.lmm.generate_with_states(asked, CaptureSpec(), max_new_tokens=longest)
        parsed = form.parse(generation.text, size)
    masks, names = [], []
    for item, place in zip(parsed.answer.segmentations or (), parsed.segmentation_spans, strict=True):
        if item.seg_index is None:
            masks.append(draw_mask(item, size))
        elif prediction is not None and place.values[0] in spans:
            number = spans[place.values[0]]
            masks.append(prediction.packed.unpack(slice(number, number + 1))[0].cpu().numpy())
        else:
            continue
        names.append(item.label)
    return generation, parsed, _stack(masks, size), names


def _record(
    sample: Sample,
    dataset: Any,
    generation: Generation,
    parsed: ParsedAnswer,
    masks: np.ndarray,
    names: Sequence[str],
    *,
    base_boxes: dict[str, Any] | None,
) -> dict[str, Any]:
    sections, answer = dataset.sections, parsed.answer
    said = {
        "answer": answer.answer,
        "detections": answer.detections,
        "segmentations": answer.segmentations,
    }
    score = None
    if "answer" in sections:
        reference = dataset.text_format.parse(sample.text, sample.image_size).answer.answer or ""
        score = answer_record(sample.record_id, sample.prompt or "", answer.answer or "", [reference])[
            "score"
        ]
    # An end token spells nothing.
    ended = (
        bool(generation.token_offsets) and generation.token_offsets[-1][0] == generation.token_offsets[-1][1]
    )
    return {
        **_names(sample),
        "answer": generation.text,
        "missing": [name for name in sections if said[name] is None],
        "truncated": not ended,
        "num_parsed": parsed.report.num_parsed,
        "num_bad": parsed.report.num_bad,
        "num_repaired": parsed.report.num_repaired,
        "num_unread_masks": len(answer.segmentations or ()) - len(masks),
        "boxes": answer_boxes(sample, parsed, dataset.metainfo["classes"])
        if "detections" in sections
        else None,
        "masks": answer_masks(sample, masks, names, _mask_classes(sample, dataset))
        if "segmentations" in sections
        else None,
        "score": score,
        "base_boxes": base_boxes,
    }


def _read_reference(model: Any, sample: Sample, dataset: Any) -> dict[str, Any]:
    """Masks for the tokens of the reference answer."""
    parsed = dataset.text_format.parse(sample.text, sample.image_size)
    names = [item.label for item in parsed.answer.segmentations or ()]
    masks: list[np.ndarray] = []
    if sample.phrases:
        prediction = model.results(_mask_task(model, dataset), [sample])[0]
        masks = list(prediction.packed.unpack().cpu().numpy())
    return {
        **_names(sample),
        "answer": sample.text,
        "missing": [],
        "truncated": False,
        "num_parsed": len(names),
        "num_bad": 0,
        "num_repaired": 0,
        "num_unread_masks": 0,
        "boxes": None,
        "masks": answer_masks(
            sample, _stack(masks, sample.image_size), names, _mask_classes(sample, dataset)
        ),
        "score": None,
        "base_boxes": None,
    }


def _names(sample: Sample) -> dict[str, Any]:
    return {
        "record_id": sample.record_id,
        "image_id": sample.image_id,
        "question": sample.prompt or "",
        "expected": sample.text,
    }


def _mask_classes(sample: Sample, dataset: Any) -> Sequence[str]:
    objects = sample.dense is not None and sample.dense.masks is not None
    classes: Sequence[str] = dataset.metainfo["classes" if objects else "semantic_classes"]
    return classes


def _stack(masks: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    return np.stack(masks) if masks else np.zeros((0, *size), dtype=bool)


JOINT = JointTask()
