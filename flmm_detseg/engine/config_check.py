"""Finds what is wrong with a config before anything is built: unknown types, arguments and overrides."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from mmengine import registry as mmengine_registries
from mmengine.config import Config, DictAction
from mmengine.registry import Registry
from mmengine.runner import Runner
from mmengine.utils import get_object_from_string
from torch.utils.data import DataLoader

from flmm_detseg import registry as registries
from flmm_detseg.errors import ConfigError
from flmm_detseg.utils.names import suggest

_RUNNER_KEYS = (
    *inspect.signature(Runner.__init__).parameters,
    "runner_type",
    "strategy",
    "model_wrapper_cfg",
)
# Read by MMEngine before it builds the part.
_CONSUMED = ("convert_to_iter_based",)
_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
_LOADER_KEYS = (*inspect.signature(DataLoader.__init__).parameters, "worker_init_fn", "num_batch_per_epoch")


def check_config(config: Config, source: str, skip: Sequence[str] = ()) -> None:
    """Checks every ``dict(type=..., ...)`` of a config against the signature of its type.

    Args:
        config: Loaded config.
        source: Named in errors.
        skip: Top-level keys that are not checked.

    Raises:
        ConfigError: A type cannot be resolved, or has no such argument; names the key.
    """
    content = {key: value for key, value in config.to_dict().items() if key not in skip}
    for where, node in walk(content):
        if where in _LOADERS:
            for key in node:
                if key not in _LOADER_KEYS:
                    raise ConfigError(
                        f"{source}: `{where}` has no argument `{key}`{suggest(key, _LOADER_KEYS)}"
                    )
        if "type" in node:
            known = argument_names(resolve(node["type"], f"{source}: `{where}.type`"))
            for key in node:
                if key not in ("type", *_CONSUMED) and known is not None and key not in known:
                    raise ConfigError(f"{source}: `{where}` has no argument `{key}`{suggest(key, known)}")


def walk(node: Any, where: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every dict of a nested structure with its dotted key."""
    if isinstance(node, Mapping):
        yield where, node
        for key, value in node.items():
            yield from walk(value, f"{where}.{key}" if where else str(key))
    elif isinstance(node, (list, tuple)):
        for position, value in enumerate(node):
            yield from walk(value, f"{where}[{position}]")


def resolve(kind: Any, where: str) -> Any:
    """The class or function of a ``type``.

    Args:
        kind: It, its dotted name, or a registered name.
        where: Named in errors.

    Raises:
        ConfigError: There is none.
    """
    if not isinstance(kind, str):
        return kind
    if "." in kind:
        found = get_object_from_string(kind)
    else:
        known = [*vars(registries).values(), *vars(mmengine_registries).values()]
        places = (place for place in known if isinstance(place, Registry))
        found = next((value for value in (place.get(kind) for place in places) if value is not None), None)
    if found is None:
        raise ConfigError(f"{where} is {kind!r}, which cannot be found; check the name and its import")
    return found


def argument_names(factory: Any) -> list[str] | None:
    """Names a class or function takes as keywords; None where it takes any."""
    makers = [base.__init__ for base in factory.__mro__] if inspect.isclass(factory) else [factory]
    names: list[str] = []
    for maker in makers:
        parameters = inspect.signature(maker).parameters
        names += [
            name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        ]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return [name for name in dict.fromkeys(names) if name != "self"]
    return None


def parse_overrides(options: Sequence[str], config: Config, also: Collection[str] = ()) -> dict[str, Any]:
    """Reads ``key=value`` overrides and checks that each changes something.

    Args:
        options: As on the command line.
        config: Config they are meant for.
        also: Fields that the command reads besides those of a run.

    Returns:
        By dotted key.

    Raises:
        ConfigError: No ``=``, or a key whose parents the config does not have.
    """
    for option in options:
        if "=" not in option:
            raise ConfigError(f"--cfg-options {option!r}: not of the form KEY=VALUE")
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, default={})
    overrides = parser.parse_args(["--cfg-options", *options]).cfg_options if options else {}
    content = config.to_dict()
    for dotted in overrides:
        *parents, last = dotted.split(".")
        node: Any = content
        for key in parents:
            node = node[int(key)] if isinstance(node, list) and key.isdigit() else _child(node, key, dotted)
        first = (parents or [last])[0]
        if first not in _RUNNER_KEYS and first not in also:
            raise ConfigError(
                f"--cfg-options {dotted}: a run does not read `{first}`, only where the config puts it (for example "
                f"custom_hooks.0 for a hook){suggest(first, [key for key in content if key in _RUNNER_KEYS])}"
            )
    return overrides


def _child(node: Any, key: str, dotted: str) -> Any:
    if not isinstance(node, Mapping) or key not in node:
        known = list(node) if isinstance(node, Mapping) else []
        raise ConfigError(f"--cfg-options {dotted}: the config has no `{key}`{suggest(key, known)}")
    return node[key]
