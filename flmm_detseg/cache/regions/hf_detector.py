"""Detectors of transformers (RT-DETR and its relatives, Apache-2.0)."""

from __future__ import annotations

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from flmm_detseg.cache.regions.sources import Regions, RegionSource
from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.weights.loading import remote_code_hint
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import Sample


@MODELS.register_module()
class HFDetector(RegionSource):
    """An object detector of transformers. Boxes come back in original pixels, whatever it resizes to.

    Args:
        pretrained: Folder in hub layout with the image processor, or a hub name, e.g. ``"PekingU/rtdetr_r18vd"``.
        threshold: Least score of a box.
        device: Where it runs.

    Raises:
        ConfigError: No such detector.
    """

    name = "transformers"

    def __init__(self, pretrained: str, threshold: float = 0.5, device: str = "cpu") -> None:
        try:
            self._processor = AutoImageProcessor.from_pretrained(pretrained, trust_remote_code=False)
            self._model = AutoModelForObjectDetection.from_pretrained(
                pretrained, use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{pretrained}: no object detector of transformers: {remote_code_hint(error)}"
            ) from error
        self._model.eval().requires_grad_(False).to(device)
        self.threshold = threshold

    @torch.no_grad()
    def find(self, sample: Sample) -> Regions:
        """See :class:`RegionSource`."""
        inputs = self._processor(images=sample.image, return_tensors="pt").to(self._model.device)
        found = self._processor.post_process_object_detection(
            self._model(**inputs), threshold=self.threshold, target_sizes=[sample.image_size]
        )[0]
        names = self._model.config.id2label
        return Regions(
            boxes_xyxy=found["boxes"].float().cpu().numpy().astype(np.float32),
            scores=found["scores"].float().cpu().numpy(),
            labels=[names[int(label)] for label in found["labels"]],
        )
