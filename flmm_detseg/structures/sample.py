"""What a dataset gives and what every other room takes: one image, one text, the phrases in it and what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flmm_detseg.structures.regions import Region


@dataclass(frozen=True)
class Phrase:
    """A phrase of :attr:`Sample.text`.

    Attributes:
        spans: Character spans ``(start, end)`` in the text, half-open; several when the phrase is not contiguous.
        is_thing: False for stuff (PNG); None where the data set does not say.
        is_plural: True when the phrase names several segments (PNG); None where the data set does not say.
    """

    spans: tuple[tuple[int, int], ...]
    is_thing: bool | None = None
    is_plural: bool | None = None


# Tasks whose text is a complete answer: the end token of a turn follows it and is learned.
ANSWER_TASKS = frozenset({"vqa", "joint", "reasoning"})


@dataclass(frozen=True)
class DenseTargets:
    """What an image shows, whatever is said about it: targets of detection and semantic segmentation.

    Attributes:
        boxes_xyxy: float32 ``[N, 4]``, original image pixels, half-open; None where objects are not annotated.
        labels: int64 ``[N]``, index into the data set's classes.
        masks: bool ``[N, H, W]``; None where objects have boxes only.
        crowd: bool ``[N]``; regions of many objects, neither learned nor counted as errors.
        semantic: uint8 ``[H, W]``, index into the data set's semantic classes, 255 where unknown; None where the
            pixels are not annotated.
        weights: float32 ``[N]`` in (0, 1], how far each object is to be trusted (pseudo-labels); None for 1.
    """

    boxes_xyxy: np.ndarray | None = None
    labels: np.ndarray | None = None
    masks: np.ndarray | None = None
    crowd: np.ndarray | None = None
    semantic: np.ndarray | None = None
    weights: np.ndarray | None = None


# Modality of images unless a sample names another.
RGB = "rgb"


@dataclass(frozen=True)
class Turn:
    """An earlier question of a conversation and its answer."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Sample:
    """One record on its way through training, evaluation or inference (plain numpy: crosses worker processes).

    Attributes:
        record_id: Names the record in errors and reports, e.g. ``"refcoco/val/ref-123"``.
        image: RGB, uint8, ``[H, W, 3]``, original size.
        text: The answer the LMM reads after the prompt (teacher-forced): a caption or referring expressions.
        phrases: The K phrases of the text to be grounded.
        masks: Targets of the phrases in original image pixels, bool ``[K, H, W]``; None at inference.
        prompt: The user's question; None means the adapter's default description prompt.
        image_id: Samples with equal non-None ``image_id`` show the same image: they share vision features, image
            prefix and SAM embedding inside a batch.
        task: Which heads read the sample (:attr:`~flmm_detseg.heads.base.Head.tasks`): ``"phrase"``,
            ``"detection"``, ``"segmentation"``, ``"vqa"`` (the text is the answer to ``prompt``), ``"joint"``,
            ``"reasoning"`` (the text is an answer with K mask tokens, ``phrases`` and ``masks`` are theirs), or the
            name of a task of your own that a head of yours reads.
        dense: Targets of detection and semantic segmentation; None at inference and for other tasks.
        sections: Character spans of :attr:`text` that count alike in the language loss, however long each is (the
            sections of a joint answer); empty where every token counts alike.
        turns: Earlier turns of the conversation, before ``prompt``; the images stand in front of the first one.
        more_images: Further images of the prompt, as ``image``, after it. Phrases are grounded in ``image``.
        modalities: What each image of the prompt is, ``"rgb"`` or a name of your own such as ``"depth"``; empty where
            all are ``"rgb"``. An LMM reads them alike unless one of its parts is for some of them.
        regions: Regions that the sample points at, in the order of their places (``<region>``, or what the LMM's part
            is set to), which may be in ``prompt``, in ``turns`` and in ``text``: as many as there are places in all.
        meta: Further facts a metric or a report wants (plain containers only), e.g. ``{"sentence_id": 7}``. One is an
            array: ``"ignore"`` of samples with regions that count neither as target nor as background, bool
            ``[H, W]``.
    """

    record_id: str
    image: np.ndarray
    text: str
    phrases: tuple[Phrase, ...]
    masks: np.ndarray | None = None
    prompt: str | None = None
    image_id: str | None = None
    task: str = "phrase"
    dense: DenseTargets | None = None
    sections: tuple[tuple[int, int], ...] = ()
    turns: tuple[Turn, ...] = ()
    more_images: tuple[np.ndarray, ...] = ()
    modalities: tuple[str, ...] = ()
    regions: tuple[Region, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def image_size(self) -> tuple[int, int]:
        """Original image size ``(H, W)``."""
        return int(self.image.shape[0]), int(self.image.shape[1])

    def phrase_text(self, index: int) -> str:
        """Text of one phrase; parts of a non-contiguous phrase joined by a space."""
        return " ".join(self.text[start:end] for start, end in self.phrases[index].spans)
