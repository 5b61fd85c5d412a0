"""Names of models: folders in hub layout, or names on the hub."""

from __future__ import annotations

from flmm_detseg.errors import ConfigError
from flmm_detseg.utils.paths import find, places


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
