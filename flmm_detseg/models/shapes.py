"""A config's model as shapes only, and checkpoints of other projects checked against it."""

from __future__ import annotations

import copy
import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from mmengine.config import Config
from mmengine.utils import get_object_from_string

from flmm_detseg.cache import CachedLMM
from flmm_detseg.compat.transformers5 import is_of_type
from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.lmm import LMM
from flmm_detseg.lmms.weights.trained_layout import check_layout
from flmm_detseg.models.checkpoint import IDENTITY, LAYOUT, check_tensors, lmm_layout, read_checkpoint
from flmm_detseg.models.from_config import read_config, without_start
from flmm_detseg.models.grounding_lmm import GroundingLMM
from flmm_detseg.registry import MODELS, way_to_build
from flmm_detseg.utils.paths import find


def model_on_meta(config: Config, lmm_config: str | Path | None = None) -> GroundingLMM:
    """Builds the model of a config on the meta device: names, shapes and ``requires_grad``, no weights read.

    Args:
        config: Loaded config; its LMM (or the one that a :class:`CachedLMM` wraps) and its SAM are named by
            ``from_pretrained``.
        lmm_config: ``config.json`` of the LMM, or its folder; None looks where ``pretrained`` points.

    Returns:
        The model; none of its tensors has memory.

    Raises:
        ConfigError: The LMM's sizes are not available, or the config cannot be built.
    """
    model = copy.deepcopy(without_start(config.model).to_dict())
    adapter, lmm = _lmm_of(model)
    source = lmm.pop("pretrained")
    lmm.update(type=adapter.from_config, config=_lmm_sizes(adapter, source, lmm_config))
    _drop_sam_weights([model["heads"], model.get("parts")])
    with torch.device("meta"):
        return MODELS.build(model)


def lmm_source(config: Config) -> tuple[type[LMM], str]:
    """The LMM that a config loads, or the one that its :class:`CachedLMM` wraps.

    Args:
        config: Loaded config.

    Returns:
        Its adapter, and its hub name or folder.

    Raises:
        ConfigError: It is not named by ``from_pretrained``.
    """
    adapter, lmm = _lmm_of(config.model)
    return adapter, lmm["pretrained"]


def import_flmm_checkpoint(
    source: str | Path, config: str | Path, out: str | Path, lmm_config: str | Path | None = None
) -> dict[str, Any]:
    """Checks a published F-LMM checkpoint against a config's model and stores it in our form.

    Args:
        source: Plain file, or DeepSpeed folder.
        config: Config the checkpoint belongs to.
        out: File to write: ``{"meta": ..., "state_dict": ...}``, our names.
        lmm_config: See :func:`model_on_meta`.

    Returns:
        ``out``, ``num_tensors``, ``num_parameters``.

    Raises:
        CheckpointError: Unsafe or damaged, or keys or shapes do not fit; lists them.
        ConfigError: The config cannot be used.
    """
    read = read_config(config)
    model, checkpoint = model_on_meta(read, lmm_config), read_checkpoint(source)
    check_layout(lmm_layout(model.lmm), checkpoint.layout, str(source))
    given = check_tensors(model, checkpoint.tensors, str(source))
    meta = {"source": str(source), "config": str(config)}
    # Published files do not say on which LMM they were trained; ours do, and so does the file written here.
    for entry, text in ((LAYOUT, checkpoint.layout), (IDENTITY, checkpoint.identity)):
        if text is not None:
            meta[entry] = text
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    torch.save({"meta": meta, "state_dict": given}, part)
    os.replace(part, out)
    count = sum(value.numel() for value in given.values())
    return {"out": str(out), "num_tensors": len(given), "num_parameters": count}


def _lmm_of(model: Mapping[str, Any]) -> tuple[type[LMM], Any]:
    """Adapter and settings of a model's LMM."""
    where, lmm = "model.lmm", model["lmm"]
    if _object(lmm) is CachedLMM:
        where, lmm = "model.lmm.lmm", lmm["lmm"]
    kind = _object(lmm)
    if not inspect.ismethod(kind) or kind.__name__ != "from_pretrained":
        raise ConfigError(
            f"`{where}.type` is no `from_pretrained`; cannot tell the LMM's sizes without building it"
        )
    return cast(type[LMM], kind.__self__), lmm


def _object(part: Mapping[str, Any]) -> Any:
    """What builds a part: the class, function or method that its ``type`` means."""
    kind = part["type"]
    if isinstance(kind, str):
        kind = get_object_from_string(kind) if "." in kind else MODELS.get(kind)
    return way_to_build(kind, [key for key in part if key != "type"])


def _lmm_sizes(adapter: type[LMM], pretrained: str, lmm_config: str | Path | None) -> dict[str, Any]:
    """Fields of the LMM's config."""
    try:
        if lmm_config is None:
            fields, _ = adapter.family_class.config_class.get_config_dict(find(pretrained))
        else:
            path = find(lmm_config)
            fields = json.loads((path / "config.json" if path.is_dir() else path).read_text())
    except (OSError, ValueError) as error:
        where = pretrained if lmm_config is None else lmm_config
        raise ConfigError(
            f"sizes of the LMM are needed, and {where} gives no config.json ({str(error).splitlines()[0]}); "
            "name a local one (--lmm-config FILE)"
        ) from error
    wanted = adapter.family_class.config_class.model_type
    if not is_of_type(fields, wanted):
        raise ConfigError(
            f"the LMM's config.json is of type {fields.get('model_type')!r}, the recipe needs {wanted!r}"
        )
    return fields


def _drop_sam_weights(node: Any) -> None:
    """Parts that name their size need no weight file to have shapes."""
    if isinstance(node, dict):
        if node.get("variant") is not None and "checkpoint" in node:
            node["checkpoint"] = None
        for value in node.values():
            _drop_sam_weights(value)
    elif isinstance(node, list):
        for value in node:
            _drop_sam_weights(value)
