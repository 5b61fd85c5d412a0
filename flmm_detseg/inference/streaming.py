"""From a config to answers about a stream of images, and detections of our own model as its objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config

from flmm_detseg.cache import BackgroundCache, CachedLMM, CacheSettings, Regions, RegionSource, StreamSession
from flmm_detseg.errors import ConfigError
from flmm_detseg.heads import require_head
from flmm_detseg.models import GroundingLMM
from flmm_detseg.models.from_config import model_from_config, read_config
from flmm_detseg.registry import MODELS
from flmm_detseg.store.settings import ApproximateSettings
from flmm_detseg.structures import Sample
from flmm_detseg.utils.names import suggest

# Settings that contain further settings.
_NESTED = {"approximate": ApproximateSettings}


def stream_from_config(
    config: str | Path | Config,
    checkpoint: str | Path | None = None,
    *,
    cache: BackgroundCache | None = None,
    untrained: bool = False,
    device: str | torch.device | None = None,
    tenant: str = "default",
    session_id: str | None = None,
    static: bool = False,
    allow_other_lmm: bool = False,
) -> tuple[StreamSession, GroundingLMM]:
    """Builds the model of a config and a session on it.

    Args:
        config: Config whose ``model.lmm`` is a :class:`CachedLMM`; ``stream_cache`` has the cache's settings.
        checkpoint: As for :func:`~flmm_detseg.models.from_config.model_from_config`.
        cache: A cache that several sessions share; None makes one.
        untrained: As for ``model_from_config``.
        device: As for ``model_from_config``.
        tenant: Owner of the images.
        session_id: Name of the stream; None makes one.
        static: See :meth:`StreamSession.declare_static`.
        allow_other_lmm: As for ``model_from_config``.

    Returns:
        The session, and the model: where it has a phrase head,
        :meth:`~flmm_detseg.inference.grounder.Grounder.ground_answer` makes masks of the session's answers.

    Raises:
        ConfigError: The config cannot be used, or its LMM keeps no background apart.
        CheckpointError: No checkpoint, or one of another model.
    """
    config = read_config(config)
    model = model_from_config(
        config, checkpoint, untrained=untrained, device=device, allow_other_lmm=allow_other_lmm
    )
    if not isinstance(model.lmm, CachedLMM):
        raise ConfigError(f"`model.lmm` is a {type(model.lmm).__name__}; a stream needs a CachedLMM")
    if cache is None:
        cache = BackgroundCache(settings_from_config(config, model.lmm.device))
    session = StreamSession(model.lmm, cache, tenant=tenant, session_id=session_id)
    if static:
        session.declare_static()
    return session, model


def settings_from_config(
    config: str | Path | Config, device: str | torch.device | None = None
) -> CacheSettings:
    """The cache's settings of a config: its ``stream_cache``, with ``approximate`` inside of it for level L3.

    Args:
        config: File, or loaded.
        device: Of the model. The device tier is there when the config gives it a budget and names no device; with a
            model on the CPU there is neither such a tier nor pinned memory.

    Returns:
        The settings; the defaults of :class:`CacheSettings` where the config says nothing.

    Raises:
        ConfigError: A key is unknown or a value cannot be used.
    """
    config = read_config(config)
    given = dict(config.get("stream_cache", {}))
    if device is not None and given.get("device") is None:
        if torch.device(device).type == "cpu":
            given |= {"device_bytes": 0, "pin_host": False}
        else:
            given["device"] = str(device)
    return _settings(CacheSettings, given, f"{config.filename or 'the config'}: `stream_cache`")


def _settings(kind: type, given: Mapping[str, Any], where: str) -> Any:
    """A dataclass of settings; those within it may be mappings."""
    named = given.get("type", kind)
    name = named if isinstance(named, str) else named.__name__
    if name.rpartition(".")[2] != kind.__name__:
        raise ConfigError(f"{where} has the type {name}, wanted {kind.__name__}")
    known = [field.name for field in fields(kind)]
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key == "type":
            continue
        if key not in known:
            raise ConfigError(f"{where} has no setting `{key}`{suggest(key, known)}")
        if key in _NESTED and value is not None and not isinstance(value, _NESTED[key]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}.{key} is {value!r}; give dict(type={_NESTED[key].__name__}, ...)")
            value = _settings(_NESTED[key], value, f"{where}.{key}")
        values[key] = value
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigError(f"{where}: a value is of the wrong kind ({error})") from error


@MODELS.register_module()
class HeadRegions(RegionSource):
    """Objects are what the model's own detection head finds.

    Args:
        config: Config of a model with a detection head, or the built model.
        checkpoint: Its trained parts.
        threshold: Least score of a box.
        device: Where a model built here runs; None takes the GPU when there is one.

    Raises:
        ConfigError: The model has no head that detects.
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
        if isinstance(config, GroundingLMM):
            self._model = config.eval()
        else:
            self._model = model_from_config(config, checkpoint, device=device)
        self._head = require_head(self._model.heads, "detection")
        self.threshold = threshold

    def find(self, sample: Sample) -> Regions:
        """See :class:`RegionSource`."""
        found = self._model.detect([sample])[0].cpu()
        found = found[found.scores >= self.threshold]
        names = self._head.class_names
        return Regions(
            boxes_xyxy=found.bboxes.numpy().astype(np.float32),
            scores=found.scores.numpy(),
            labels=[names[int(label)] for label in found.labels],
        )
