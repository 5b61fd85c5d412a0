"""From a model to a folder that a hub can hold."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flmm_detseg
from flmm_detseg.errors import ConfigError
from flmm_detseg.evaluation.results import weights_hash
from flmm_detseg.evaluation.stored_figures import read_figures
from flmm_detseg.models.checkpoint import trainable_tensors, write_safetensors
from flmm_detseg.models.domain import DOMAIN_FILE, Domain
from flmm_detseg.models.grounding_lmm import GroundingLMM
from flmm_detseg.models.pretrained.card import LIBRARY, CardFacts, model_card
from flmm_detseg.models.pretrained.config_json import FILE, to_json
from flmm_detseg.models.pretrained.frozen import frozen_hashes
from flmm_detseg.models.pretrained.reading import (
    EVALUATION,
    FORMAT,
    FROZEN,
    TENSORS_FILE,
    base_fields,
    own_hash,
)
from flmm_detseg.models.trained_on import trained_on
from flmm_detseg.registry import DATASETS, MODELS
from flmm_detseg.utils.configs import config_name
from flmm_detseg.utils.hub import CARD_FILE, MODEL_FILE, is_hub_name
from flmm_detseg.utils.paths import find, is_file
from flmm_detseg.utils.provenance import file_hash
from flmm_detseg.utils.whole_files import new_folder, write_json, write_text

# Of the model's config, what only a training needs.
_TRAINING = ("init_from", "new_parts", "teachers", "allow_other_lmm")
# A file of a config that is no weights (a ranking of heads) goes into the folder.
_SMALL_SUFFIX, _SMALL_BYTES = ".json", 1 << 20
_FILE_ENDINGS = (".json", ".pth", ".pt", ".safetensors")
_COPIED = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.pth", "*.pt", "LICENSE*", "README.md")


def save_pretrained(
    model: GroundingLMM,
    folder: str | Path,
    *,
    base: str | None = None,
    inside: bool = False,
    licence: str | None = None,
    command: str | None = None,
    results: Sequence[str | Path] = (),
    domain: str | Path | None = None,
) -> dict[str, Any]:
    """Writes trained tensors, config, hashes and card; all or nothing.

    Args:
        model: From :func:`~flmm_detseg.models.from_config.model_from_config`.
        folder: Folder to make.
        base: Name of the LMM on the hub, where the config names a folder of this machine.
        inside: Copy the frozen weights that the config names as files or folders (LMM, SAM) into the folder too. What
            it names on the hub stays a name.
        licence: Of what was trained, as the hub abbreviates it.
        command: That trained it; None: the one that trains its config, where it is a config of a training.
        results: Files of ``flmm-detseg evaluate``, for the card.
        domain: File of ``flmm-detseg export domain``; None: what lay beside the checkpoint, if anything.

    Returns:
        ``out``, ``num_tensors``, ``num_parameters``, ``megabytes``, ``references`` (what is needed beside the folder),
        ``left_out`` (data sets of evaluations that name places of this machine).

    Raises:
        ConfigError: There is something at ``folder``; the model has no config, or one that has no form in JSON or names
            a place of this machine alone.
        DataError: A file of ``results`` cannot be used.
        CheckpointError: The file of ``domain`` cannot.
    """
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ConfigError(f"{folder} exists already; name a new folder, or remove it first")
    config = model.built_from
    if config is None:
        raise ConfigError(
            "this model was put together in Python and has no config to store; build it from one (Grounder.from_config)"
        )
    known = model.domain if domain is None else Domain.load(find(domain))
    figures = [figure for path in results for figure in read_figures(path)]
    fields = {key: value for key, value in config.model.items() if key not in _TRAINING}
    with new_folder(folder) as part:
        stored = _Files(part, inside=inside)
        base_fields(fields)  # there is one
        content = to_json(fields, MODELS, "model", stored.text)
        lmm = base_fields(content)
        if base is not None:
            stored.drop(lmm["pretrained"])
            lmm["pretrained"] = base
        stored.refuse_absolute()
        evaluation, left_out = _evaluation(config)
        write_safetensors(model, part / TENSORS_FILE, with_identity=not model.allow_other_lmm)
        if known is not None:
            known.save(part / DOMAIN_FILE)
        files = {
            path.relative_to(part).as_posix(): {"sha256": file_hash(path), "bytes": path.stat().st_size}
            for path in sorted(part.rglob("*"))
            if path.is_file()
        }
        data = trained_on(config)
        trained_by = command or config.get("trained_by") or _command(config)
        frozen = dict(config.get(FROZEN) or frozen_hashes(model))
        whole = {
            "format": FORMAT,
            "library_name": LIBRARY,
            "version": flmm_detseg.__version__,
            "model": content,
            "evaluation": evaluation,
            "trained_on": data,
            "trained_by": trained_by,
            FROZEN: frozen,
            "files": files,
        }
        write_json(part / MODEL_FILE, {**whole, "sha256": own_hash(whole)})
        tensors = trainable_tensors(model)
        name = lmm["pretrained"] if isinstance(lmm["pretrained"], str) else "the LMM in this folder"
        needed = [f"`{text}`" for text in (*stored.references, *([base] if base else []))]
        facts = CardFacts(
            name=folder.resolve().name,
            licence=licence,
            base=name,
            base_on_hub=base is not None or (is_hub_name(name) and not find(name).exists()),
            adapted=_adapted(model),
            heads={key: type(head).__name__ for key, head in model.heads.items()},
            num_tensors=len(tensors),
            num_parameters=sum(tensor.numel() for tensor in tensors.values()),
            trained_on=data,
            trained_by=trained_by,
            needed=needed,
            domain=known,
            figures=figures,
            same_weights=weights_hash(model) if figures else "",
            files={key: str(value["sha256"]) for key, value in files.items()},
        )
        write_text(part / CARD_FILE, model_card(facts))
        size = sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
    return {
        "out": str(folder),
        "num_tensors": facts.num_tensors,
        "num_parameters": facts.num_parameters,
        "megabytes": round(size / 1e6, 2),
        "references": [text.strip("`") for text in needed],
        "left_out": left_out,
    }


class _Files:
    """What becomes of the texts of a config that name files.

    Args:
        folder: The model's, that is being filled.
        inside: Copy weights too.
    """

    def __init__(self, folder: Path, *, inside: bool) -> None:
        self.folder = folder
        self.inside = inside
        self.references: list[str] = []
        self.places: dict[str, str] = {}

    def text(self, value: str, where: str) -> Any:
        """What is stored for a text: itself, or the copy in the folder that it now names."""
        names_file = "/" in value or value.endswith(_FILE_ENDINGS)
        path = find(value)
        if not names_file or not path.exists():
            if Path(value).is_absolute():
                self.places[value] = where
            elif where.endswith((".pretrained", ".checkpoint")) and value not in self.references:
                self.references.append(value)
            return value
        small = is_file(path) and path.suffix == _SMALL_SUFFIX and path.stat().st_size <= _SMALL_BYTES
        if small or self.inside:
            return {FILE: self._copy(path, "files" if small else "parts")}
        if Path(value).is_absolute():
            self.places[value] = where
        if value not in self.references:
            self.references.append(value)
        return value

    def drop(self, value: Any) -> None:
        """The text has been replaced; nothing has to be said of it."""
        if isinstance(value, Mapping):
            shutil.rmtree(self.folder / value[FILE], ignore_errors=True)
            return
        self.places.pop(value, None)
        self.references = [text for text in self.references if text != value]

    def refuse_absolute(self) -> None:
        """Raises where the config names a place of this machine."""
        for value, where in self.places.items():
            raise ConfigError(
                f"`{where}` is {value!r}, a place of this machine: others could not load the model. Name the LMM on "
                "the hub (base='owner/name', --base), or store the weights with the model (inside=True, --inside)"
            )

    def _copy(self, path: Path, below: str) -> str:
        name, number = f"{below}/{path.name}", 2
        while (self.folder / name).exists():
            name, number = f"{below}/{number}_{path.name}", number + 1
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            shutil.copyfile(path, target)
            return name
        target.mkdir()
        for pattern in _COPIED:
            for file in sorted(path.glob(pattern)):
                if file.is_file() and not (target / file.name).exists():
                    shutil.copyfile(file, target / file.name)
        return name


def _evaluation(config: Any) -> tuple[dict[str, Any], list[str]]:
    """Data sets of evaluations, without those that lie at places of this machine."""
    found: dict[str, Any] = {}
    left_out: list[str] = []

    def text(value: str, where: str) -> str:
        if Path(value).is_absolute() or ".." in value.split("/") or value.startswith("~"):
            left_out.append(".".join(where.split(".")[:2]))
        return value

    # Key by key: the values of all would import what the recipe's training needs, XTuner too.
    for key in [key for key in config if key.endswith(EVALUATION)]:
        listed = config[key]
        if not isinstance(listed, Mapping):
            continue
        for name, entry in listed.items():
            stored = to_json(entry, DATASETS, f"{key}.{name}", text)
            if f"{key}.{name}" not in left_out:
                found.setdefault(key, {})[name] = stored
    return found, list(dict.fromkeys(left_out))


def _command(config: Any) -> str | None:
    if config.get("train_dataloader") is None or not config.filename:
        return None
    return f"flmm-detseg train {config_name(config.filename)}"


def _adapted(model: GroundingLMM) -> list[str]:
    lmm: Any = model.lmm
    parts = [f"LoRA on {name} (r={group.r})" for name, group in lmm.lora_groups.items()]
    tokens = getattr(lmm, "added_tokens", None)
    return (
        parts
        + ([] if tokens is None else ["added tokens"])
        + [f"part {p}" for p in getattr(lmm, "added_parts", {})]
    )
