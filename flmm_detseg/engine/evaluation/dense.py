"""Evaluation of what an image shows: detection, instance and semantic segmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.structures import InstanceData

from flmm_detseg.engine.checks.class_check import check_classes
from flmm_detseg.engine.evaluation.task import EvaluationOptions, Task
from flmm_detseg.errors import ConfigError
from flmm_detseg.evaluation import (
    box_record,
    coco_figures,
    semseg_figures,
    semseg_record,
    text_box_figures,
)
from flmm_detseg.evaluation.coco_metric import check_backend, read_truth
from flmm_detseg.language import dequantise_boxes, score_detections, text_format
from flmm_detseg.structures import CaptureSpec, Sample
from flmm_detseg.utils.choices import BOX_SOURCES
from flmm_detseg.utils.whole_files import dump_json, write_text


@dataclass(frozen=True)
class BoxOptions(EvaluationOptions):
    """Arguments of the box evaluation, beside the common ones.

    Attributes:
        boxes: ``"head"``: of the detection head; ``"text"``: read from the model's answer to the sample's prompt (or
            to the request to list the objects), scored by the probabilities of their tokens where the LMM gives them.
        max_new_tokens: Length of such an answer.
        text_format: How such an answer is asked for and read, one of
            :data:`~flmm_detseg.utils.choices.TEXT_FORMATS`.
        backend: ``"pycocotools"`` | ``"faster"``.
        annotation_file: COCO file to take targets and areas from (the official figures); None: from the samples.
        classwise: Also AP of every class.
    """

    boxes: str = "head"
    max_new_tokens: int = 1024
    text_format: str = "template"
    backend: str = "pycocotools"
    annotation_file: str | None = None
    classwise: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.boxes not in BOX_SOURCES:
            raise ConfigError(f"`boxes` is {self.boxes!r}; allowed: {', '.join(BOX_SOURCES)}")
        text_format(self.text_format)
        check_backend(self.backend)


class BoxTask(Task[BoxOptions]):
    """Boxes and masks of objects, from ``model.detect`` or ``model.answer``."""

    name, config_key = "coco", "coco_eval"

    def check_data(self, dataset: Any, options: BoxOptions) -> None:
        """Reads ``annotation_file``: it must have every class and every image."""
        if options.annotation_file is not None:
            images = [record.image_id for record in dataset.records if hasattr(record, "image_id")]
            read_truth(options.annotation_file).check(_classes(dataset, "classes"), images)

    def check(self, model: Any, dataset: Any, options: BoxOptions) -> None:
        """Classes of head and data; answers in words are compared with the data's names as they are."""
        if options.boxes == "head":
            check_classes(model, dataset)

    def facts(
        self, model: Any, samples: list[Sample], dataset: Any, options: BoxOptions
    ) -> list[list[dict[str, Any]]]:
        """What was found beside what is there, one entry per image."""
        if options.boxes == "head":
            found: list[tuple[Any, dict[str, Any]]] = [(objects, {}) for objects in model.detect(samples)]
        else:
            classes = _classes(dataset, "classes")
            found = [_read_objects(model, sample, classes, options) for sample in samples]
        return [
            [{**box_record(sample, objects), **facts}]
            for sample, (objects, facts) in zip(samples, found, strict=True)
        ]

    def figures(
        self, records: Sequence[Mapping[str, Any]], dataset: Any, options: BoxOptions
    ) -> dict[str, float]:
        """COCO's figures; of boxes in answers F1, how many could be read, and AP where they have scores."""
        if options.boxes == "head":
            return coco_figures(
                records,
                _classes(dataset, "classes"),
                annotation_file=options.annotation_file,
                backend=options.backend,
                classwise=options.classwise,
            )
        figures = text_box_figures(records)
        for key in ("num_parsed", "num_bad", "num_unknown_names"):
            figures[key] = sum(record[key] for record in records)
        begun = figures["num_parsed"] + figures["num_bad"]
        figures["parse_rate"] = figures["num_parsed"] / begun if begun else 1.0
        if records and all("scores" in record for record in records):
            classes = _classes(dataset, "classes")
            precision = coco_figures(
                [_known_boxes(record, len(classes)) for record in records],
                classes,
                annotation_file=options.annotation_file,
                backend=options.backend,
                classwise=options.classwise,
            )
            figures.update({key: value for key, value in precision.items() if key.startswith("AP")})
        return figures

    def settings(self, options: BoxOptions) -> dict[str, Any]:
        """Where the boxes come from."""
        if options.boxes == "head":
            return {"boxes": options.boxes}
        source = {"boxes": options.boxes, "max_new_tokens": options.max_new_tokens}
        if options.text_format != "template":
            source["text_format"] = options.text_format
        return {**source, "scores": "token probabilities"}

    def conventions(self, options: BoxOptions) -> dict[str, Any]:
        """Backend and source of the targets."""
        return {"backend": options.backend, "annotation_file": options.annotation_file}

    def file_stem(self, options: BoxOptions) -> str:
        """Boxes from text have a file of their own."""
        return self.name if options.boxes == "head" else f"{self.name}-text"

    def export(
        self, records: Sequence[Mapping[str, Any]], dataset: Any, stem: Path, options: BoxOptions
    ) -> list[Path]:
        """COCO's results format; boxes without a score have the score 1."""
        info = dataset.metainfo
        ids = info.get("category_ids", range(1, 1 + len(_classes(dataset, "classes"))))
        results = []
        for record in records:
            for k, (x0, y0, x1, y1) in enumerate(record["boxes_xyxy"]):
                if record["labels"][k] >= len(ids):
                    continue
                entry = {
                    "image_id": record["image_id"],
                    "category_id": ids[record["labels"][k]],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "score": record["scores"][k] if "scores" in record else 1.0,
                }
                results.append(entry | ({"segmentation": record["masks"][k]} if "masks" in record else {}))
        file = stem.with_name(f"{stem.name}-{options.boxes}-results.json")
        write_text(file, dump_json(results))
        return [file]


def _classes(dataset: Any, key: str) -> tuple[str, ...]:
    classes = dataset.metainfo.get(key)
    if not classes:
        raise ConfigError(
            f"{type(dataset).__name__} names no classes (`metainfo[{key!r}]`): it cannot be evaluated so"
        )
    return tuple(classes)


def _read_objects(
    model: Any, sample: Sample, classes: Sequence[str], options: BoxOptions
) -> tuple[InstanceData, dict[str, Any]]:
    """Objects of an answer, and how well it could be read. Names that are no class get a label of their own."""
    form = text_format(options.text_format)
    asked = replace(
        sample,
        text="",
        phrases=(),
        masks=None,
        task="joint",
        prompt=sample.prompt or form.ask(form.objects_question, ("detections",)),
    )
    generate = getattr(getattr(model, "lmm", None), "generate_with_states", None)
    if generate is None:
        text = model.answer(asked, max_new_tokens=options.max_new_tokens)
        parsed = form.parse(text, sample.image_size)
        answer = parsed.answer
    else:  # the answer of `model.answer`: joint samples are the adapted LMM's in every retention mode
        generation = generate(asked, CaptureSpec(), max_new_tokens=options.max_new_tokens)
        text = generation.text
        parsed = form.parse(text, sample.image_size)
        answer = score_detections(parsed, generation.log_probs, generation.token_offsets)
    items = answer.detections or ()
    numbers = {name.lower(): number for number, name in enumerate(classes)}
    labels = [numbers.get(item.label.lower(), len(classes)) for item in items]
    corners = np.asarray([item.box for item in items], dtype=np.float64).reshape(-1, 4)
    objects = InstanceData(
        bboxes=torch.from_numpy(dequantise_boxes(corners, sample.image_size)).float(),
        labels=torch.tensor(labels, dtype=torch.int64),
    )
    if generate is not None:
        objects.scores = torch.tensor([item.score or 0.0 for item in items], dtype=torch.float32)
    facts = {
        "answer": text,
        "num_parsed": parsed.report.num_parsed,
        "num_bad": parsed.report.num_bad,
        "num_unknown_names": sum(label == len(classes) for label in labels),
    }
    return objects, facts


def _known_boxes(record: Mapping[str, Any], num_classes: int) -> dict[str, Any]:
    """The record without boxes of names that are no class: average precision has no place for them."""
    kept = [k for k, label in enumerate(record["labels"]) if label < num_classes]
    return {**record, **{key: [record[key][k] for k in kept] for key in ("boxes_xyxy", "labels", "scores")}}


@dataclass(frozen=True)
class MapOptions(EvaluationOptions):
    """Arguments of the semantic segmentation evaluation, beside the common ones.

    Attributes:
        tolerance: Of the boundary F1; below 1 a share of the image diagonal, else pixels.
        band: Of the boundary IoU, as a share of the image diagonal.
        classwise: Also IoU of every class.
    """

    tolerance: float = 0.0075
    band: float = 0.02
    classwise: bool = False


class MapTask(Task[MapOptions]):
    """Label maps, from ``model.segment``."""

    name, config_key = "semseg", "semseg_eval"

    def check(self, model: Any, dataset: Any, options: MapOptions) -> None:
        """Classes of head and data."""
        check_classes(model, dataset)

    def facts(
        self, model: Any, samples: list[Sample], dataset: Any, options: MapOptions
    ) -> list[list[dict[str, Any]]]:
        """Pixel counts, one entry per image."""
        num_classes = len(_classes(dataset, "semantic_classes"))
        widths = {"tolerance": options.tolerance, "band": options.band}
        maps = model.segment(samples)
        return [
            [semseg_record(sample, found, num_classes, **widths)]
            for sample, found in zip(samples, maps, strict=True)
        ]

    def figures(
        self, records: Sequence[Mapping[str, Any]], dataset: Any, options: MapOptions
    ) -> dict[str, float]:
        """Figures of :func:`~flmm_detseg.evaluation.semseg_figures`."""
        classes = _classes(dataset, "semantic_classes")
        return semseg_figures(records, len(classes), classes if options.classwise else None)

    def settings(self, options: MapOptions) -> dict[str, Any]:
        """Widths of the boundaries."""
        return {"tolerance": options.tolerance, "band": options.band}

    def conventions(self, options: MapOptions) -> dict[str, Any]:
        """Widths of the boundaries."""
        return self.settings(options)


COCO_BOXES = BoxTask()
SEMANTIC_MAPS = MapTask()
