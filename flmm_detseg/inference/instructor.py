"""Follows compound instructions: text, boxes and masks of one image in one result."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flmm_detseg.datasets.images import ImageLike, read_image
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.heads import Head, head_of, named_heads, require_head
from flmm_detseg.inference.attention_maps import heat_of
from flmm_detseg.inference.boxes_as_text import boxes_as_text
from flmm_detseg.inference.chinese_instructions import has_chinese
from flmm_detseg.inference.class_words import match_class, match_group
from flmm_detseg.inference.domain_watch import watch_of
from flmm_detseg.inference.export.exportable import Exportable
from flmm_detseg.inference.instructions import parse_instruction
from flmm_detseg.inference.regions import Box, Region
from flmm_detseg.inference.steps import Step
from flmm_detseg.models import GroundingLMM
from flmm_detseg.models.presence import MinPresence, presence_limit
from flmm_detseg.ops.boxes import masks_to_boxes
from flmm_detseg.ops.masks import above
from flmm_detseg.structures import Phrase, Sample
from flmm_detseg.utils.finite import require_finite
from flmm_detseg.utils.rle import encode_rle
from flmm_detseg.utils.whole_files import dump_json, put_in_place, write_text
from flmm_detseg.visualization import draw_grounding
from flmm_detseg.visualization.canvas import outline
from flmm_detseg.visualization.dense import box_mask

# Phrases in one pass of the LMM.
_BATCH = 8


class Found(NamedTuple):
    """What came of a step that detects or segments.

    Attributes:
        step: The step.
        regions: What was found, best first where they are detected objects.
        sentence: What to say about it; begins with the step's words.
    """

    step: Step
    regions: tuple[Region, ...]
    sentence: str


@dataclass(frozen=True)
class InstructionResult(Exportable):
    """The result of an instruction.

    Attributes:
        image: RGB uint8 ``[H, W, 3]``.
        instruction: As given.
        steps: What was understood.
        text: Answers of the LMM and a sentence for each step.
        regions: Boxes and masks, in the order of the steps.
        uninterpreted: Words of the instruction that belong to no step.
    """

    image: np.ndarray = field(repr=False)
    instruction: str
    steps: tuple[Step, ...]
    text: str
    regions: tuple[Region, ...]
    uninterpreted: tuple[str, ...] = ()

    def overlay(self) -> np.ndarray:
        """One picture with everything found; RGB uint8."""
        size = self.image.shape[:2]
        masks = [
            region.mask if region.mask is not None else outline(box_mask(np.array(region.box_xyxy), size), 1)
            for region in self.regions
        ]
        stacked = np.stack(masks) if masks else np.zeros((0, *size), dtype=bool)
        boxes = np.array([r.box_xyxy if r.kind == "detect" else (0, 0, 0, 0) for r in self.regions]).reshape(
            -1, 4
        )
        names = [region.label for region in self.regions]
        scores = [region.score for region in self.regions]
        return draw_grounding(self.image, stacked, names, scores, boxes)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: masks as COCO's compressed RLE, boxes as ``[x, y, w, h]``."""
        regions = []
        for region in self.regions:
            x0, y0, x1, y1 = region.box_xyxy
            entry: dict[str, Any] = {
                "kind": region.kind,
                "label": region.label,
                "score": region.score,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
            }
            if region.mask is not None:
                entry["segmentation"] = encode_rle(region.mask)
                entry["area"] = int(region.mask.sum())
            regions.append(entry)
        steps = [{"kind": step.kind, "text": step.text, "span": list(step.span)} for step in self.steps]
        return {
            "instruction": self.instruction,
            "image_size": list(self.image.shape[:2]),
            "text": self.text,
            "steps": steps,
            "uninterpreted": list(self.uninterpreted),
            "regions": regions,
        }

    def save(self, folder: str | Path, name: str = "result") -> Mapping[str, str]:
        """Writes ``NAME.png`` and ``NAME.json``, each whole or not at all; returns both paths.

        Args:
            folder: Made when it is missing.
            name: Of the files, without suffix.

        Returns:
            ``picture`` and ``data``, the two paths as texts.

        Raises:
            ConfigError: A file of that name is there that is no earlier result, for example the photo itself.
            RunError: A score or box is NaN or infinite; nothing is written.
        """
        folder = Path(folder)
        picture, data = result_files(folder, name)
        content, drawn = dump_json(self.as_dict()), Image.fromarray(self.overlay())
        folder.mkdir(parents=True, exist_ok=True)
        # The JSON first: by it an earlier result is known, and a picture alone would be taken for a photo.
        write_text(data, content)
        part = picture.with_name(f"{picture.name}.{os.getpid()}.tmp")
        drawn.save(part, format="PNG")
        put_in_place(part, picture)
        return {"picture": str(picture), "json": str(data)}


def result_files(folder: str | Path, name: str) -> tuple[Path, Path]:
    """Files that a result is written to, ``NAME.png`` and ``NAME.json``; an earlier result is replaced, nothing else.

    Args:
        folder: Where results go.
        name: Of the files, without suffix.

    Returns:
        Both paths; nothing is written here.

    Raises:
        ConfigError: A file of that name is there and no result of ours.
    """
    picture, data = Path(folder) / f"{name}.png", Path(folder) / f"{name}.json"
    there = [file for file in (picture, data) if file.exists()]
    if there and not _is_result(data):
        raise ConfigError(
            f"{there[0]} is there and no result of ours: it would be replaced. Write to another folder"
        )
    return picture, data


def _is_result(data: Path) -> bool:
    try:
        content = json.loads(data.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"instruction", "regions"} <= content.keys()


class Instructor:
    """A joint model for use: an image and an instruction in; text, boxes, masks, a picture and JSON out.

    Args:
        model: With the heads that instructions need.
        score_threshold: Least score of a detection.
        classes: What open heads (``classifier="open"``) of detection and of segmentation are to find for this
            instructor, any names: they compare with the LMM's embeddings of these words. The model itself keeps its
            classes. None: those.
        min_presence: Least probability that there is what a phrase names, see
            :meth:`Grounder.ground <flmm_detseg.inference.grounder.Grounder.ground>`; below it nothing is found.
        answer_with_detections: Give the LMM before each question what the detection head found, with scores of at
            least ``score_threshold``; in which words, see
            :func:`~flmm_detseg.inference.boxes_as_text.boxes_as_text`. True: ``"template"``.

    Raises:
        ConfigError: ``min_presence`` with a model that has no presence head; ``classes`` without an open head for
            detection or segmentation, or a name without a token; ``answer_with_detections`` without a detection head,
            or unknown words.

    Example:
        >>> instructor = Instructor(model_from_config("configs/tiny/detseg_stability.py", "joint.pth"))
        >>> result = instructor.follow("scene.png", "detect the stars and segment the ring on the left")
        >>> result.save("out")
    """

    def __init__(
        self,
        model: GroundingLMM,
        *,
        score_threshold: float = 0.3,
        classes: Sequence[str] | None = None,
        min_presence: MinPresence = None,
        answer_with_detections: bool | str = False,
    ) -> None:
        self.model = model.eval()
        self._limit = presence_limit(model, min_presence)
        self._watch = watch_of(model.domain)
        self.score_threshold = score_threshold
        self.classes = None if classes is None else tuple(classes)
        self._embeddings = None if classes is None else self._embed(classes)
        self._box_words = "template" if answer_with_detections is True else answer_with_detections or None
        if self._box_words is not None:
            boxes_as_text((), (1, 1), self._box_words)  # they are known
            if self._detector is None:
                raise ConfigError(
                    "`answer_with_detections` needs a detection head; the model has none (heads: "
                    f"{', '.join(self.model.heads)})"
                )

    def _embed(self, classes: Sequence[str]) -> Tensor:
        heads = [head for head in (self._detector, self._segmenter) if head is not None]
        if not heads:
            raise ConfigError(
                "`classes` are for a head of detection or segmentation; the model has none (heads: "
                f"{', '.join(self.model.heads)})"
            )
        openly = [head for head in heads if head.wants_class_embeddings]
        if not openly:
            known = heads[0].class_names
            raise ConfigError(
                "`classes` need a head of detection or segmentation with `classifier`='open'; this one knows only "
                f"{', '.join(known[:5])}{', ...' if len(known) > 5 else ''}"
            )
        with torch.no_grad():
            embeddings = self.model.lmm.class_embeddings(classes)
            for head in openly:
                with head.other_classes(embeddings, classes):
                    pass  # they fit
        return embeddings

    def follow(self, image: ImageLike, instruction: str, *, max_new_tokens: int = 128) -> InstructionResult:
        """Carries out an instruction.

        Classes the detection head knows are detected; other words after "detect" are grounded as a phrase, which gives
        one region (however many things it names) or none. Phrases are segmented by the phrase head, each as a text of
        its own; one whose mask is empty gives no region. Groups of classes ("only segment the animals") are the objects
        of those classes that the detection head knows, after both verbs. "Segment the sky": a class of the semantic
        head is all pixels of that class, where there is no phrase head, or a detection head that does not know it.
        Questions go to the LMM.

        Args:
            image: Path, PIL image, or RGB uint8 array.
            instruction: For example ``"detect the cars and segment the tree on the left"``.
            max_new_tokens: Longest answer.

        Returns:
            Regions (masks and boxes in pixels of the image) and the answers of the LMM.

        Raises:
            DataError: The image cannot be read, or the instruction asks for nothing.
            ConfigError: The model has no head for what is asked.
        """
        pixels = read_image(image, "image")
        parsed = parse_instruction(instruction)
        found = iter(self.find(pixels, [step for step in parsed.steps if step.kind != "answer"]))
        regions: list[Region] = []
        texts: list[str] = []
        for step in parsed.steps:
            if step.kind == "answer":
                asked = self.with_detections(pixels, step.text)
                sample = Sample("question", pixels, "", (), prompt=asked, task="vqa")
                with torch.inference_mode():
                    texts.append(self.model.answer(sample, max_new_tokens=max_new_tokens))
            else:
                outcome = next(found)
                regions += outcome.regions
                texts.append(outcome.sentence)
        return InstructionResult(
            pixels, instruction, parsed.steps, " ".join(texts), tuple(regions), parsed.uninterpreted
        )

    def with_detections(self, image: ImageLike, question: str) -> str:
        """A question as the LMM gets it: what the detection head found before it, where that was asked for.

        Args:
            image: As in :meth:`follow`.
            question: The words.

        Returns:
            The words, with or without text before them.

        Raises:
            DataError: The image cannot be read.
        """
        if self._box_words is None:
            return question
        pixels = read_image(image, "image")
        with torch.inference_mode():
            objects = self._detect(pixels)
        return boxes_as_text(objects, (pixels.shape[0], pixels.shape[1]), self._box_words) + question

    def find(self, pixels: np.ndarray, steps: Sequence[Step], *, keep_attention: bool = False) -> list[Found]:
        """What the heads find for steps that detect or segment: one call of each head that is needed.

        Args:
            pixels: RGB uint8 ``[H, W, 3]``.
            steps: None of kind ``"answer"``.
            keep_attention: Keep where the LMM looked for each phrase.

        Returns:
            One for each step, in order.

        Raises:
            DataError: A phrase is empty.
            ConfigError: The model has no head for what is asked.
        """
        self._watch.look(pixels)
        labels = [self._labels(step) for step in steps]
        areas = [
            self.map_labels(step) if asked is None else None
            for step, asked in zip(steps, labels, strict=True)
        ]
        plan = list(zip(steps, labels, areas, strict=True))
        phrases = [step for step, asked, area in plan if asked is None and area is None]
        with torch.inference_mode():
            objects = self._detect(pixels) if any(asked is not None for asked in labels) else []
            covered = self._cover(pixels, {label for area in areas for label in area or ()})
            grounded = iter(self._ground(pixels, phrases, keep_attention))
            found = []
            for step, asked, area in plan:
                counted = True
                regions: tuple[Region, ...]
                if asked is not None:
                    names = {self._class_names[label] for label in asked}
                    regions = tuple(region for region in objects if region.label in names)
                    if step.kind == "segment":
                        regions = self._with_masks(pixels, regions)
                elif area is not None:
                    regions, counted = (
                        tuple(covered[label] for label in area if label in covered),
                        len(area) > 1,
                    )
                else:
                    region, counted = next(grounded), False
                    regions = () if region is None else (region,)
                found.append(Found(step, regions, sentence(step, len(regions), counted=counted)))
        return found

    def _labels(self, step: Step) -> list[int] | None:
        """Classes whose objects are asked for; None: the words are grounded as a phrase.

        A class after "segment" is a phrase, whose mask is of the one thing that is meant. A group ("the animals") is
        no thing that a phrase could name.
        """
        if self._detector is None:
            return None
        match = match_class if step.kind == "detect" else match_group
        return match(step.text, self._class_names)

    def map_labels(self, step: Step) -> list[int] | None:
        """Classes of the semantic head that a step asks for.

        Args:
            step: One that detects or segments, which the detection head does not follow.

        Returns:
            Labels, ascending; None where another head is to follow it: detections are boxes, and a phrase head outlines
            things. What a detection head does not know beside it ("the sky") is no thing.
        """
        if self._segmenter is None or step.kind != "segment":
            return None
        if head_of(self.model.heads, "phrase") is not None and (
            self._detector is None or match_class(step.text, self._class_names) is not None
        ):
            return None
        return match_class(step.text, self._map_names)

    @property
    def _detector(self) -> Head[Any] | None:
        return head_of(self.model.heads, "detection")

    @property
    def _segmenter(self) -> Head[Any] | None:
        return head_of(self.model.heads, "segmentation")

    @property
    def _class_names(self) -> tuple[str, ...]:
        return self._names_of(require_head(self.model.heads, "detection"))

    @property
    def _map_names(self) -> tuple[str, ...]:
        return self._names_of(require_head(self.model.heads, "segmentation"))

    def _names_of(self, head: Head[Any]) -> tuple[str, ...]:
        return self.classes if self.classes and head.wants_class_embeddings else head.class_names

    def _own_classes(self, head: Head[Any]) -> AbstractContextManager[None]:
        """Context in which a head finds this instructor's classes, where it may be given any."""
        if self._embeddings is None or not head.wants_class_embeddings:
            return nullcontext()
        return head.other_classes(self._embeddings, self._names_of(head))

    def _cover(self, pixels: np.ndarray, labels: Collection[int]) -> dict[int, Region]:
        """By label the pixels of a class; those that have none are left out."""
        if not labels:
            return {}
        names, head = self._map_names, require_head(self.model.heads, "segmentation")
        with self._own_classes(head):
            (shares,) = self.model.class_probabilities([Sample("image", pixels, "", (), task="segmentation")])
        best = shares.argmax(0)
        found = {}
        for label in labels:
            mask = best == label
            if mask.any():
                score = float(shares[label][mask].mean())
                box = _corners(masks_to_boxes(mask[None])[0])
                found[label] = Region("segment", names[label], score, box, mask.cpu().numpy(), "mask")
        return found

    def _detect(self, pixels: np.ndarray) -> list[Region]:
        """Objects of all classes; the model has its own classes again afterwards."""
        names, head = self._class_names, require_head(self.model.heads, "detection")
        with self._own_classes(head):
            found = self.model.detect([Sample("image", pixels, "", (), task="detection")])[0].cpu()
        masks: Sequence[Any] = found.masks.numpy() if "masks" in found else [None] * len(found)
        return [
            Region("detect", names[int(label)], float(score), _corners(box), mask, "detector")
            for box, score, label, mask in zip(found.bboxes, found.scores, found.labels, masks, strict=True)
            if float(score) >= self.score_threshold
        ]

    def _with_masks(self, pixels: np.ndarray, regions: Sequence[Region]) -> tuple[Region, ...]:
        """Detected objects that are to be segmented: masks of their boxes, where the model has a refiner."""
        heads = named_heads(self.model.heads).values()
        refiner = next((head.refiner for head in heads if head.refiner is not None), None)
        regions = [replace(region, kind="segment") for region in regions]
        if refiner is None or not regions or regions[0].mask is not None:
            return tuple(regions)
        boxes = torch.tensor([region.box_xyxy for region in regions], device=self.model.lmm.device)
        (maps,) = refiner.maps_from_boxes([pixels], [boxes])
        require_finite("masks of detected objects", ["image"], [maps.maps[None]])
        masks = [above(maps.enlarge(slice(i, i + 1)), 0.0)[0].cpu().numpy() for i in range(len(regions))]
        return tuple(replace(region, mask=mask) for region, mask in zip(regions, masks, strict=True))

    def _ground(self, pixels: np.ndarray, steps: Sequence[Step], keep_attention: bool) -> list[Region | None]:
        """What the phrase head finds of the words of each step; None where its mask is empty."""
        if not steps:
            return []
        if head_of(self.model.heads, "phrase") is None:
            raise ConfigError(
                f"{steps[0].text!r}: the model has no phrase head to ground it (heads: {', '.join(self.model.heads)})"
            )
        if not all(step.text.strip() for step in steps):
            raise DataError("a phrase to ground is empty")
        # Each phrase alone is a text, as in training on referring expressions; all about one image, read once.
        samples = [
            Sample("image", pixels, step.text, (Phrase(((0, len(step.text)),)),), image_id="image")
            for step in steps
        ]
        grid = self.model.lmm.prepare(samples[0]).grid if keep_attention else None
        found: list[Region | None] = []
        predictions = [
            prediction
            for start in range(0, len(samples), _BATCH)
            for prediction in self.model.predict(
                samples[start : start + _BATCH], keep_attention=keep_attention
            )
        ]
        for step, prediction in zip(steps, predictions, strict=True):
            prediction = prediction.cpu()
            if self._limit is not None:
                prediction = prediction.only_present(self._limit)
            mask = prediction.masks[0].numpy()
            if not mask.any():
                found.append(None)
                continue
            seen = None
            if grid is not None and prediction.attention is not None:
                seen = heat_of(prediction.attention[0].numpy(), grid)
            box, score = _corners(prediction.boxes_xyxy[0]), float(prediction.scores[0])
            found.append(Region(step.kind, step.text, score, box, mask, "mask", seen))
        return found


def sentence(step: Step, count: int, *, counted: bool) -> str:
    """What to say about a step, in English or Chinese as its words are.

    Args:
        step: One that detects or segments; the sentence begins with its words.
        count: How many regions were found.
        counted: They are objects of a detector, or several classes; else one region, or none, was found.

    Returns:
        The sentence.
    """
    if has_chinese(step.text):
        if counted:
            return f"{step.text}：找到 {count} 个。"
        how = "已分割" if step.kind == "segment" else "按短语找到"
        return f"{step.text}：{how if count else '没有找到'}。"
    if counted:
        return f"{step.text}: {count} found."
    how = "segmented" if step.kind == "segment" else "found as a phrase"
    return f"{step.text}: {how if count else 'not found'}."


def _corners(box: Tensor) -> Box:
    x0, y0, x1, y1 = map(float, box)
    return x0, y0, x1, y1


def result_names(images: Sequence[str | Path]) -> list[str]:
    """Names of the files that :meth:`InstructionResult.save` writes for images: their names without the suffix.

    Args:
        images: Image files.

    Returns:
        A name per image, in order.

    Raises:
        ConfigError: Two images would have the same result.
    """
    by_name: dict[str, str | Path] = {}
    for image in images:
        name = Path(image).stem
        if name in by_name:
            raise ConfigError(
                f"{by_name[name]} and {image} would both be written as {name}.png and {name}.json; give one of them "
                "another name, or run the tool once for each with another --out"
            )
        by_name[name] = image
    return list(by_name)
