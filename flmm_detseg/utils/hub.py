"""Names of models: folders in hub layout, or names on the hub."""

from __future__ import annotations

import functools
import re
from fnmatch import fnmatchcase
from pathlib import Path

from flmm_detseg.errors import ConfigError
from flmm_detseg.utils.paths import find, places

# The file that says what is in a model's folder.
MODEL_FILE = "config.json"
# What people read of it; the one file of a stored model whose hash nothing holds.
CARD_FILE = "README.md"
# What a command takes for a model on the hub: hf://owner/name, with or without @revision.
HUB = "hf://"
_FETCHED = (
    MODEL_FILE,
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.model",
    "*.txt",
    CARD_FILE,
    # What `--inside` copies besides.
    "parts/*.pth",
    "parts/*.pt",
    "parts/*LICENSE*",
    "parts/*README.md",
)
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def check_folder(pretrained: str) -> str:
    """Checks that a model name is a folder in hub layout, or can be a hub name.

    Args:
        pretrained: Folder or hub name.

    Returns:
        The folder (see :func:`~flmm_detseg.utils.paths.find`), or the hub name.

    Raises:
        ConfigError: It looks like a path and is none, or the folder has no config.
    """
    path = find(pretrained)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(f"{path}: no config.json; the folder is not a model in hub layout")
        return str(path)
    if path.exists():
        raise ConfigError(f"{path} is a file; the folder of a model in hub layout is needed")
    if path.is_absolute() or pretrained.startswith((".", "~")) or pretrained.count("/") != 1:
        raise ConfigError(
            f"{path}: no such folder ({places(pretrained)}); put the model there in hub layout "
            "(config.json, *.safetensors, preprocessor and tokenizer files) or name one on the hub as owner/name"
        )
    return pretrained


def is_hub_name(name: str) -> bool:
    """Whether a text can be the name of a model on a hub: ``owner/name``."""
    return _NAME.fullmatch(name) is not None


def is_fetched(name: str) -> bool:
    """Whether a file of a model is of the kinds that are fetched from a hub: all that anything here could read.

    Args:
        name: Of the file within the model's folder, with slashes.

    Returns:
        As for a file on a hub.
    """
    return any(fnmatchcase(name, pattern) for pattern in _FETCHED)


@functools.cache
def fetch_model(name: str, revision: str | None = None) -> Path:
    """The folder of a model on the hub: out of the local cache, or fetched into it. No code is fetched.

    Args:
        name: ``owner/name``.
        revision: Branch, tag or commit; None: the newest one of the main branch.

    Returns:
        The folder in the cache.

    Raises:
        ConfigError: There is no such model, or it can neither be reached nor is it in the cache.
    """
    if not is_hub_name(name):
        raise ConfigError(f"{name!r} is no model on a hub; its name is owner/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(_FETCHED)))
    except (HfHubHTTPError, OSError, ValueError) as error:
        at = "" if revision is None else f" at revision {revision}"
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(
            f"{name}{at} is neither in the local cache nor to be had from the hub ({type(error).__name__}: {reason}). "
            "Check name, revision, network and access; or copy the folder and name that"
        ) from error
    if not (folder / MODEL_FILE).is_file():
        raise ConfigError(
            f"{name}: no {MODEL_FILE} in it; `flmm-detseg export pretrained` writes such folders"
        )
    return folder


def model_folder(name: str | Path, revision: str | None = None) -> Path:
    """The folder of a stored model.

    Args:
        name: Folder, ``owner/name`` on the hub, or ``hf://owner/name@revision``. A folder comes first.
        revision: On the hub; see :func:`fetch_model`.

    Returns:
        The folder, with its :data:`MODEL_FILE`.

    Raises:
        ConfigError: There is none, or a revision was asked of a local folder.
    """
    text = str(name)
    if text.startswith(HUB):
        text, _, stated = text.removeprefix(HUB).partition("@")
        return fetch_model(text, revision or stated or None)
    path = find(name)
    if path.is_dir():
        if revision is not None:
            raise ConfigError(f"{path} is a folder of this machine, which has no revision ({revision!r})")
        if not (path / MODEL_FILE).is_file():
            raise ConfigError(
                f"{path}: no {MODEL_FILE} in it; `flmm-detseg export pretrained` writes such folders"
            )
        return path
    if path.exists() or not is_hub_name(text):
        raise ConfigError(
            f"{path}: no such folder ({places(name)}), and no name of a model on the hub (owner/name)"
        )
    return fetch_model(text, revision)
