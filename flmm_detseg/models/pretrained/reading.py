"""From a model's folder to its config: the hash of every file but the card is checked, and no code is run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from mmengine.config import Config

from flmm_detseg.errors import CheckpointError, ConfigError
from flmm_detseg.models.pretrained.config_json import from_json, inside
from flmm_detseg.registry import DATASETS, MODELS, SCOPE
from flmm_detseg.utils.hub import CARD_FILE, MODEL_FILE, is_fetched
from flmm_detseg.utils.provenance import file_hash
from flmm_detseg.utils.whole_files import dump_json, read_json

TENSORS_FILE = "model.safetensors"
FORMAT = "flmm_detseg.model/1"
# Key of the config: hashes of what the trained tensors stand beside.
FROZEN = "frozen_sha256"
# How the keys of evaluations' data sets end.
EVALUATION = "_eval"
# What else of a folder is kept in the config, so that it is there when the model is stored again.
FACTS = ("trained_on", "trained_by", FROZEN)
_AGAIN = "fetch or copy the folder again"


def own_hash(content: Mapping[str, Any]) -> str:
    """sha256 of a model file's content without the entry ``sha256``."""
    rest = {key: value for key, value in sorted(content.items()) if key != "sha256"}
    return hashlib.sha256(dump_json(rest).encode()).hexdigest()


def read_model_folder(folder: Path) -> Config:
    """Reads and checks a folder that ``save_pretrained`` wrote.

    Args:
        folder: With ``config.json`` and the files it lists.

    Returns:
        A config like any other: ``model``, ``load_from``, data sets of evaluations.

    Raises:
        ConfigError: It is no such folder, or its config asks for what may not be built.
        CheckpointError: A file is missing, was changed, or was added.
    """
    path = folder / MODEL_FILE
    content = read_json(path, _AGAIN)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        kind = content.get("model_type") if isinstance(content, dict) else None
        what = (
            f"an LMM of transformers ({kind}), to be used with --lmm or as `model.lmm.pretrained`"
            if kind
            else ""
        )
        raise ConfigError(
            f"{folder} holds {what or f'no model of format {FORMAT!r}'}; `flmm-detseg export pretrained` writes "
            "folders that take a config's place"
        )
    if own_hash(content) != content.get("sha256"):
        raise CheckpointError(
            f"{path} was changed after it was written (its hash differs): {_AGAIN}. To change a model, load it and "
            "store it anew; another copy of its LMM is named by from_pretrained(..., base=...)"
        )
    _check_files(folder, content.get("files"))
    fields = {"model": from_json(content.get("model"), MODELS, "model", folder)}
    if not isinstance(fields["model"], dict):
        raise ConfigError(f"{path} has no `model`; {_AGAIN}")
    evaluation = content.get("evaluation") or {}
    # Other keys of a config mean something else; hooks and imports are among them.
    if not isinstance(evaluation, dict) or not all(key.endswith(EVALUATION) for key in evaluation):
        raise ConfigError(
            f"{path}: `evaluation` holds data sets by `..{EVALUATION}` and nothing else; {_AGAIN}"
        )
    for key, value in evaluation.items():
        fields[key] = from_json(value, DATASETS, key, folder)
    facts = {key: content[key] for key in FACTS if content.get(key)}
    return Config(
        {**fields, **facts, "default_scope": SCOPE, "load_from": str(folder / TENSORS_FILE)},
        filename=str(path),
    )


def _check_files(folder: Path, files: Any) -> None:
    if not isinstance(files, dict) or TENSORS_FILE not in files:
        raise CheckpointError(f"{folder / MODEL_FILE} lists no {TENSORS_FILE}; {_AGAIN}")
    for name, facts in files.items():
        path = inside(folder, name, "files")
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; {_AGAIN}")
        if not isinstance(facts, dict) or file_hash(path) != facts.get("sha256"):
            raise CheckpointError(
                f"{path} is not the file that was stored (its sha256 differs from the one in {MODEL_FILE}): it is "
                f"damaged or was replaced; {_AGAIN}"
            )
    _refuse_others(folder, {inside(folder, name, "files") for name in files})


def _refuse_others(folder: Path, listed: Set[Path]) -> None:
    """Files that nobody vouches for, where something would read them as if they were the model's."""
    free = {folder / MODEL_FILE, folder / CARD_FILE}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        linked = path.is_dir() and path.is_symlink()  # its content is not looked through
        other = is_fetched(name) and not path.is_dir() and path not in free and not name.startswith("LICENSE")
        if path not in listed and (linked or other):
            raise CheckpointError(
                f"{path} is not among the files that {MODEL_FILE} lists, so it was put there after the model was "
                "stored: remove it, or store the model anew (what a model knows of its pictures is stored by "
                "domain=..., --domain)"
            )


def base_fields(model: Any) -> Any:
    """The fields of the LMM that a model's config names, with ``pretrained``.

    Args:
        model: ``model`` of a config.

    Returns:
        The mapping; that of the inner one where an LMM stands around another (the background cache's).

    Raises:
        ConfigError: No LMM is named.
    """
    fields = model.get("lmm")
    while isinstance(fields, Mapping) and "pretrained" not in fields:
        fields = fields.get("lmm")
    if not isinstance(fields, Mapping):
        raise ConfigError(
            "`model.lmm` names no `pretrained`: a model is stored beside the LMM that it belongs to"
        )
    return fields
