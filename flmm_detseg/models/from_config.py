"""From a config file and a checkpoint to a model that is ready to predict."""

from __future__ import annotations

from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict

from flmm_detseg.errors import CheckpointError, ConfigError
from flmm_detseg.heads import named_heads
from flmm_detseg.heads.attention_mask_head import AttentionMaskHead
from flmm_detseg.models.checkpoint import load_file
from flmm_detseg.models.config_errors import explain_config_error, relative_import
from flmm_detseg.models.domain import domain_beside
from flmm_detseg.models.grounding_lmm import GroundingLMM
from flmm_detseg.models.pretrained.frozen import check_frozen
from flmm_detseg.models.pretrained.reading import FROZEN, read_model_folder
from flmm_detseg.registry import MODELS
from flmm_detseg.utils.configs import config_file
from flmm_detseg.utils.hub import MODEL_FILE
from flmm_detseg.utils.paths import find
from flmm_detseg.utils.whole_files import write_text


def read_config(config: str | Path | Config) -> Config:
    """Reads a config file, named as :func:`~flmm_detseg.utils.configs.config_file` finds it; a ``Config`` is returned
    as it is.

    A stored model (``export pretrained``) takes a config's place on every road that leads through here: its files are
    checked, and its trained tensors are the config's ``load_from``.

    Args:
        config: File, name, folder of a stored model, or loaded config.

    Returns:
        The config, with a ``model``.

    Raises:
        ConfigError: No such file, it cannot be executed, or it has no ``model``; names the file.
        CheckpointError: A file of a stored model is missing, was changed, or was added.
    """
    if isinstance(config, Config):
        return config
    path = config_file(config)
    if path.name == MODEL_FILE:
        return read_model_folder(path.parent)
    try:
        read = Config.fromfile(path)
    except Exception as error:  # whatever the user's Python file raises is the message
        raise ConfigError(f"config {path} cannot be read: {explain_config_error(error, path)}") from error
    if misplaced := relative_import(read):
        raise ConfigError(f"config {path} cannot be used: {misplaced}")
    if "model" not in read and "stages" in read:
        raise ConfigError(f"{path} is a plan of several runs, no config (`flmm-detseg stages` runs it)")
    if "model" not in read:
        raise ConfigError(f"config {path} has no `model`")
    return read


def dump_config(config: str | Path, out: Path) -> Path:
    """Writes a config with all that it inherits into one file, which reads as equal from any folder.

    Args:
        config: As in :func:`read_config`.
        out: File to write; its folder is made.

    Returns:
        ``out``.

    Raises:
        ConfigError: The config cannot be read.
    """
    source = config_file(config)
    read = read_config(source)
    text = f"""# {source.name} of flmm_detseg with all that it inherits; `flmm-detseg copy-config` wrote it.
{read.pretty_text}"""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, text)
    return out


def model_from_config(
    config: str | Path | Config,
    checkpoint: str | Path | None = None,
    *,
    untrained: bool = False,
    device: str | torch.device | None = None,
    allow_other_lmm: bool = False,
) -> GroundingLMM:
    """Builds the model of a config, loads the trained parts, and sets it to eval mode.

    Args:
        config: Config file, or a loaded config. Relative paths count from the current folder, then from the
            repository.
        checkpoint: File or folder with the trained parts; None takes ``load_from`` of the config.
        untrained: Leave the heads as they were initialised when there is neither checkpoint nor
            ``load_from``.
        device: Where to put the model; None takes ``cuda`` when there is one.
        allow_other_lmm: Accept a checkpoint that was trained on another LMM, see :class:`GroundingLMM`.

    Returns:
        The model in eval mode on its device.

    Raises:
        ConfigError: The config cannot be used.
        CheckpointError: No checkpoint and not ``untrained``, where there is something to train; or it does not fit the
            model.
    """
    config = read_config(config)
    checkpoint = checkpoint or config.get("load_from")
    name = config.filename or "the config"
    if checkpoint is None and not untrained and not _nothing_to_train(config.model):
        raise CheckpointError(
            f"no checkpoint for {name}: its heads are untrained and would ground nothing; pass the "
            "checkpoint that `python tools/train.py` wrote (its last line names it), set `load_from` in the "
            "config, or ask for random heads with untrained=True (--untrained)"
        )
    # What a stage started from is in its checkpoint; the files need not be there any more.
    fields = config.model if checkpoint is None else without_start(config.model)
    if allow_other_lmm:
        fields = ConfigDict({**fields, "allow_other_lmm": True})
    model = MODELS.build(fields)
    if not isinstance(model, GroundingLMM):
        raise ConfigError(f"{name}: `model` is a {type(model).__name__}, a GroundingLMM is needed")
    if checkpoint is not None:
        keep_box_decoders(model)
        for part in load_file(model, checkpoint):
            owner, _, name = part.rpartition(".")
            setattr(model.get_submodule(owner), name, None)  # rather none than a random one
        model.domain = domain_beside(find(checkpoint))
    if FROZEN in config:
        check_frozen(model, config[FROZEN], name)
    model.built_from = config
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device).eval()


def keep_box_decoders(model: GroundingLMM) -> None:
    """Before trained parts are loaded: SAM as it was built, which they overwrite, goes on to answer boxes and points.

    Args:
        model: Just built. A refiner that keeps a decoder already is left alone.
    """
    for head in named_heads(model.heads).values():
        if head.refiner is not None and head.refiner.box_parts is None:
            head.refiner.keep_box_decoder()


def _nothing_to_train(model: ConfigDict) -> bool:
    """Whether a config's heads are those that are never trained, so that no checkpoint of them can be."""
    heads = model.get("heads", {}).values()
    if any(head.get("presence") for head in heads):
        return False
    kinds = [head.get("mask_head", {}).get("type") for head in heads]
    found = [MODELS.get(kind) if isinstance(kind, str) else kind for kind in kinds]
    return bool(found) and all(kind is AttentionMaskHead for kind in found) and not model.lmm.get("lora")


def without_start(model: ConfigDict) -> ConfigDict:
    """``model`` of a config without the checkpoints that its training began with or learned from."""
    training = ("init_from", "new_parts", "teachers")
    return ConfigDict({key: value for key, value in model.items() if key not in training})
