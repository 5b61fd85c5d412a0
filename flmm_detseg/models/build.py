"""Builds LMMs, heads and what heads share from config, with errors that name the key."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Protocol, get_args, get_type_hints

from mmengine.config import ConfigDict
from torch import nn

from flmm_detseg.datasets.class_names import named_classes
from flmm_detseg.errors import ConfigError, FlmmError
from flmm_detseg.lmms.base import LMMAdapter
from flmm_detseg.registry import MODELS, check_arguments, find_type, way_to_build

# Arguments that follow from the LMM, wherever a part has an argument of that name.
_DERIVED = {
    "in_channels": "attention_channels",
    "num_layers": "num_layers",
    "hidden_size": "hidden_size",
    "vision_channels": "vision_channels",
    "patch_size": "patch_size",
}


def build_lmm(config: Mapping[str, Any] | LMMAdapter) -> LMMAdapter:
    """Builds an LMM adapter; a built one is returned as it is.

    Args:
        config: Of an adapter, or the adapter.

    Returns:
        The adapter.

    Raises:
        ConfigError: The config cannot be built, or builds something else.
    """
    lmm = _build(config, "model.lmm", {}) if isinstance(config, Mapping) else config
    if not isinstance(lmm, LMMAdapter):
        raise ConfigError(f"`model.lmm` is a {type(lmm).__name__}; an LMMAdapter is needed")
    return lmm


class Shared(Protocol):
    """Parts that a config shares by name, see :mod:`flmm_detseg.models.shared_parts`."""

    def take(self, name: str, where: str) -> nn.Module:
        """The part of a name."""


def build_part(
    config: Mapping[str, Any] | nn.Module, lmm: LMMAdapter, where: str, shared: Shared | None = None
) -> nn.Module:
    """Builds a head with all its parts; a built one is returned as it is.

    Sizes that follow from the LMM (``in_channels``, ``num_layers``, ``hidden_size``) are filled in where the config
    leaves them out, and compared where it states them. ``class_names`` may be the name of a list (see
    :func:`~flmm_detseg.datasets.class_names.named_classes`).

    Args:
        config: ``dict(type=..., ...)``, with nested parts of the same form.
        lmm: The LMM the part will read.
        where: Config key of the part, for errors.
        shared: What a text means where an argument is a part; None: no part is shared.

    Returns:
        The part; of whatever class its ``type`` says.

    Raises:
        ConfigError: Unknown type or argument, or a stated size that the LMM contradicts; names the key.
    """
    if not isinstance(config, Mapping):
        return config
    return _build(config, where, {name: getattr(lmm, source) for name, source in _DERIVED.items()}, shared)


def _build(
    config: Mapping[str, Any], where: str, derived: Mapping[str, int], shared: Shared | None = None
) -> Any:
    arguments = dict(config)
    if "type" not in arguments:
        raise ConfigError(f"`{where}` has no `type` (keys: {', '.join(map(str, arguments)) or 'none'})")
    factory = find_type(arguments.pop("type"), MODELS, where)
    try:
        factory = way_to_build(factory, list(arguments))
    except ConfigError as error:
        raise ConfigError(f"`{where}`: {error}") from None
    signature = inspect.signature(factory)
    for name, value in arguments.items():
        if isinstance(value, Mapping) and "type" in value:
            arguments[name] = _build(value, f"{where}.{name}", derived, shared)
        elif isinstance(value, Mapping) and _wants_part(factory, name):
            raise ConfigError(
                f"`{where}.{name}` has no `type` (keys: {', '.join(map(str, value)) or 'none'})"
            )
        elif isinstance(value, ConfigDict):
            arguments[name] = value.to_dict()
        elif name == "class_names" and isinstance(value, str):
            # Heads take names; which lists have a name is the data sets' knowledge.
            arguments[name] = named_classes(value)
        elif shared is not None and isinstance(value, str) and _wants_part(factory, name):
            arguments[name] = shared.take(value, f"{where}.{name}")
    check_arguments(factory, arguments, where, _DERIVED)
    for name, value in derived.items():
        if name not in signature.parameters:
            continue
        stated = arguments.setdefault(name, value)
        if stated != value:
            raise ConfigError(
                f"`{where}.{name}` is {stated}, but the LMM gives {value}; leave the key out, or change the LMM"
            )
    try:
        return factory(**arguments)
    except FlmmError as error:
        raise type(error)(f"`{where}`: {error}") from error


def _wants_part(factory: Any, name: str) -> bool:
    """Whether an argument is annotated as a module (or one of several types, a module among them)."""
    try:
        hint = get_type_hints(factory.__init__ if inspect.isclass(factory) else factory).get(name)
    except (NameError, TypeError):  # a name that only type checkers import, or no Python function
        return False
    return any(inspect.isclass(kind) and issubclass(kind, nn.Module) for kind in (hint, *get_args(hint)))
