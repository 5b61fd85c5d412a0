"""From a config to answers about a stream of images, and detections of our own model as its objects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config

from flmm_detseg.cache import BackgroundCache, CachedLMM, CacheSettings, Regions, RegionSource, StreamSession
from flmm_detseg.errors import ConfigError
from flmm_detseg.models import GroundingLMM
from flmm_detseg.models.from_config import model_from_config, read_config
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import Sample


def stream_from_config(
    config: str | Path | Config,
    checkpoint: str | Path | None = None,
    *,
    cache: BackgroundCache | None = None,
    untrained: bool = False,
    device: str | torch.device | None = None,
    tenant: str = "default",
) -> tuple[StreamSession, GroundingLMM]:
    """Builds the model of a config and a session on it.

    Args:
        config: Config whose ``model.lmm`` is a :class:`CachedLMM`; ``stream_cache`` has the cache's settings.
        checkpoint: As for :func:`~flmm_detseg.models.from_config.model_from_config`.
        cache: A cache that several sessions share; None makes one.
        untrained: As for ``model_from_config``.
        device: As for ``model_from_config``.
        tenant: Owner of the images.

    Returns:
        The session, and the model whose phrase head can ground its answers
        (:meth:`GroundingLMM.predict_answer` with ``Answer.generation``).

    Raises:
        ConfigError: The config cannot be used, or its LMM keeps no background apart.
        CheckpointError: No checkpoint, or one of another model.
    """
    config = read_config(config)
    model = model_from_config(config, checkpoint, untrained=untrained, device=device)
    if not isinstance(model.lmm, CachedLMM):
        raise ConfigError(f"`model.lmm` is a {type(model.lmm).__name__}; a stream needs a CachedLMM")
    if cache is None:
        settings = dict(config.get("stream_cache", {}))
        settings.pop("type", None)
        cache = BackgroundCache(CacheSettings(**settings))
    return StreamSession(model.lmm, cache, tenant=tenant), model


@MODELS.register_module()
class HeadRegions(RegionSource):
    """What our own detection head finds is object.

    Args:
        config: Config of a model with a detection head, or the built model.
        checkpoint: Its trained parts.
        threshold: Least score of a box.
        device: Where a model built here runs; None takes the GPU when there is one.

    Raises:
        ConfigError: The model has no head named ``detection``.
        CheckpointError: As for ``model_from_config``.
    """

    name = "own head"

    def __init__(
        self,
        config: str | Path | Config | GroundingLMM,
        checkpoint: str | Path | None = None,
        threshold: float = 0.3,
        device: str | None = None,
    ) -> None:
        built = isinstance(config, GroundingLMM)
        self._model = config.eval() if built else model_from_config(config, checkpoint, device=device)
        if "detection" not in self._model.heads:
            raise ConfigError(f"the model has no head `detection` (heads: {', '.join(self._model.heads)})")
        self.threshold = threshold

    def find(self, sample: Sample) -> Regions:
        """See :class:`RegionSource`."""
        found = self._model.detect([sample])[0].cpu()
        found = found[found.scores >= self.threshold]
        names = self._model.heads["detection"].class_names
        return Regions(
            boxes_xyxy=found.bboxes.numpy().astype(np.float32),
            scores=found.scores.numpy(),
            labels=[names[int(label)] for label in found.labels],
        )
