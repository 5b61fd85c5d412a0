"""Imports every family, so that the registry finds its adapter by name. Nothing else needs all of them."""

from __future__ import annotations

import importlib
import pkgutil

from transformers import PretrainedConfig

from flmm_detseg.compat.transformers5 import is_of_type
from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms import families
from flmm_detseg.lmms.lmm import LMM
from flmm_detseg.utils.hub import check_folder

for _module in pkgutil.iter_modules(families.__path__, f"{families.__name__}."):
    importlib.import_module(_module.name)


def adapters() -> dict[str, type[LMM]]:
    """The adapter of each kind of model.

    Returns:
        By ``model_type`` of transformers, in the order of the alphabet.
    """
    found = {adapter.family_class.config_class.model_type: adapter for adapter in LMM.__subclasses__()}
    return dict(sorted(found.items()))


def find_adapter(pretrained: str) -> type[LMM]:
    """The adapter that reads a model, by what its config says it is.

    Args:
        pretrained: Folder in hub layout, or hub name.

    Returns:
        The class; its ``from_pretrained`` takes the same argument.

    Raises:
        ConfigError: No such model, or one of a family that this package does not know.
    """
    source = check_folder(pretrained)
    try:
        fields, _ = PretrainedConfig.get_config_dict(source)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{source}: config.json cannot be read: {error}") from error
    known = adapters()
    found = next((adapter for name, adapter in known.items() if is_of_type(fields, name)), None)
    if found is None:
        raise ConfigError(
            f"{source}: model_type is {fields.get('model_type')!r}, of which there is no family here; known: "
            f"{', '.join(known)}. docs/map.md says how to add one"
        )
    return found
