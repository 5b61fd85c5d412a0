"""Boxes of Grounding DINO and masks of SAM, both from transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert
from transformers import (
    GroundingDinoForObjectDetection,
    GroundingDinoProcessor,
    SamModel,
    SamProcessor,
)

from flmm_detseg.cache.regions.text_reader import TextLine
from flmm_detseg.labelling.classes import LabelClass
from flmm_detseg.labelling.loading import load_pair
from flmm_detseg.labelling.prompts import Prompt, build_prompts, match_classes

# Boxes that SAM's decoder gets at a time: their masks are scaled up to the whole image in float32.
_BOXES_PER_CALL = 32
# Given, not guessed: in an image of 1 or 3 rows the first side would be taken for the channels.
_LAYOUT = "channels_last"


@dataclass(frozen=True)
class Detections:
    """Boxes of one image, on the CPU.

    Attributes:
        boxes_xyxy: float32 ``[N, 4]``, original image pixels, half-open; may reach over the edge.
        scores: float32 ``[N]``.
        labels: int64 ``[N]``, index of the class; -1 for none.
        lines: Of each box the line of text that it is around, None for other objects; empty: no box is one.
    """

    boxes_xyxy: Tensor
    scores: Tensor
    labels: Tensor
    lines: tuple[TextLine | None, ...] = ()

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, index: Tensor) -> Detections:
        """Some of the boxes (bool mask or indices)."""
        numbers = torch.arange(len(self))[index].tolist() if self.lines else []
        lines = tuple(self.lines[number] for number in numbers)
        return Detections(self.boxes_xyxy[index], self.scores[index], self.labels[index], lines)

    @staticmethod
    def join(parts: Sequence[Detections]) -> Detections:
        """All boxes of several."""
        return Detections(
            torch.cat([part.boxes_xyxy for part in parts]),
            torch.cat([part.scores for part in parts]),
            torch.cat([part.labels for part in parts]),
            tuple(line for part in parts for line in part.lines or [None] * len(part))
            if any(part.lines for part in parts)
            else (),
        )


class GroundingDinoDetector:
    """Open-vocabulary boxes.

    Args:
        name: Folder or hub name of a Grounding DINO of transformers.
        classes: What to look for; more than the model's text length holds become several prompts.
        box_threshold: A box needs a token with a higher score.
        text_threshold: A token with a higher score belongs to the phrase of a box.
        device: Where to run.

    Attributes:
        facts: Which model it is (see :func:`load_pair`).

    Raises:
        ConfigError: The model cannot be used, or a class is unreadable for it.
        CheckpointError: Its weights are unusable.
    """

    def __init__(
        self,
        name: str,
        classes: Sequence[LabelClass],
        box_threshold: float,
        text_threshold: float,
        device: torch.device,
    ) -> None:
        self.facts: dict[str, Any]
        self._model, self._processor, self.facts = load_pair(
            GroundingDinoForObjectDetection, GroundingDinoProcessor, name, device
        )
        config = self._model.config
        max_tokens = min(config.max_text_len, config.text_config.max_position_embeddings)
        self.prompts = build_prompts(classes, self._processor.tokenizer, max_tokens)
        self._box_threshold, self._text_threshold = box_threshold, text_threshold

    @torch.inference_mode()
    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Boxes over the box threshold.

        Images of one size are one batch; others are not, since the padding between them would change their boxes, and
        so the labels would depend on which images come together.

        Args:
            images: RGB uint8 ``[H, W, 3]``, any sizes.

        Returns:
            Per image its boxes (xyxy, its own pixels), their scores and classes (CPU).
        """
        groups: dict[tuple[int, int], list[int]] = {}
        for number, image in enumerate(images):
            groups.setdefault((image.shape[0], image.shape[1]), []).append(number)
        found: dict[int, Detections] = {}
        for size, numbers in groups.items():
            pictures = [Image.fromarray(images[number]) for number in numbers]
            parts = [self._ask(prompt, pictures, size) for prompt in self.prompts]
            found.update(zip(numbers, map(Detections.join, zip(*parts))))
        return [found[number] for number in range(len(images))]

    def _ask(self, prompt: Prompt, pictures: list[Image.Image], size: tuple[int, int]) -> list[Detections]:
        inputs = self._processor(
            images=pictures,
            text=[prompt.text] * len(pictures),
            return_tensors="pt",
            input_data_format=_LAYOUT,
        )
        outputs = self._model(**inputs.to(self._model.device))
        probabilities = outputs.logits.float().sigmoid().cpu()
        scale = torch.tensor([size[1], size[0], size[1], size[0]])
        boxes = box_convert(outputs.pred_boxes.float().cpu(), "cxcywh", "xyxy") * scale
        results = []
        for number in range(len(pictures)):
            keep = probabilities[number].amax(-1) > self._box_threshold
            labels, scores = match_classes(probabilities[number, keep], prompt, self._text_threshold)
            results.append(Detections(boxes[number, keep], scores, labels))
        return results


class SamSegmenter:
    """Masks for boxes.

    Args:
        name: Folder or hub name of a SAM of transformers.
        device: Where to run.

    Attributes:
        facts: Which model it is (see :func:`load_pair`).

    Raises:
        ConfigError: The model cannot be used.
        CheckpointError: Its weights are unusable.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.facts: dict[str, Any]
        self._model, self._processor, self.facts = load_pair(SamModel, SamProcessor, name, device)

    @torch.inference_mode()
    def segment(self, image: np.ndarray, boxes_xyxy: Tensor) -> np.ndarray:
        """One mask a box (SAM's single-mask output: a box is not ambiguous).

        Args:
            image: RGB uint8 ``[H, W, 3]``.
            boxes_xyxy: float ``[N, 4]``, pixels; N may be 0.

        Returns:
            bool ``[N, H, W]``.
        """
        if not len(boxes_xyxy):
            return np.zeros((0, *image.shape[:2]), dtype=bool)
        inputs = self._processor(
            Image.fromarray(image),
            input_boxes=[boxes_xyxy.tolist()],
            return_tensors="pt",
            input_data_format=_LAYOUT,
        )
        device = self._model.device
        embedding = self._model.get_image_embeddings(inputs["pixel_values"].to(device))
        masks = []
        for boxes in inputs["input_boxes"].float().split(_BOXES_PER_CALL, dim=1):
            outputs = self._model(
                image_embeddings=embedding, input_boxes=boxes.to(device), multimask_output=False
            )
            (full,) = self._processor.post_process_masks(
                outputs.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]
            )
            masks.append(full[:, 0].cpu())
        return torch.cat(masks).numpy().astype(bool)
