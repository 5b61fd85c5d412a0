"""Configs as JSON without code: types are registered names, and nothing else can be built from them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from mmengine.registry import Registry

from flmm_detseg.errors import ConfigError
from flmm_detseg.registry import find_type, way_to_build
from flmm_detseg.utils.names import suggest

# What JSON has no form for: a tuple, and a file of the model's own folder.
_TUPLE, FILE = "$tuple", "$file"


def to_json(value: Any, registry: Registry, where: str, on_text: Callable[[str, str], Any]) -> Any:
    """A part of a config as JSON.

    Args:
        value: Plain containers and values; mappings with a ``type`` are to be built.
        registry: Knows the types by name.
        where: Its place in the config, for errors.
        on_text: Gets every text and its place, returns what is stored in its place.

    Returns:
        JSON-ready content that :func:`from_json` turns into an equal config.

    Raises:
        ConfigError: A type is not registered, is built in another way than its arguments say, or a value has no form in
            JSON; names the place.
    """
    if isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str) or key.startswith("$")]:
            raise ConfigError(f"`{where}`: the key {wrong[0]!r} has no form in JSON; use a text")
        found = {
            key: to_json(item, registry, f"{where}.{key}", on_text)
            for key, item in value.items()
            if key != "type"
        }
        if "type" not in value:
            return found
        arguments = [key for key in value if key != "type"]
        return {"type": registered_name(value["type"], registry, arguments, where), **found}
    if isinstance(value, tuple):
        return {_TUPLE: [to_json(item, registry, f"{where}[{i}]", on_text) for i, item in enumerate(value)]}
    if isinstance(value, list):
        return [to_json(item, registry, f"{where}[{i}]", on_text) for i, item in enumerate(value)]
    if isinstance(value, str):
        return on_text(value, where)
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ConfigError(
        f"`{where}` is {value!r:.80} ({type(value).__name__}); a model that is stored has numbers, texts, lists and "
        "registered types in its config"
    )


def registered_name(kind: Any, registry: Registry, arguments: list[str], where: str) -> str:
    """The name of a config's ``type``.

    Args:
        kind: Class, class method or text.
        registry: Where it is registered.
        arguments: Names of the arguments beside it.
        where: Its place in the config, for errors.

    Returns:
        The name; with these arguments it means the same way to build.

    Raises:
        ConfigError: It has none; says what to do.
    """
    kind = find_type(kind, registry, where)
    owner = kind.__self__ if inspect.ismethod(kind) else kind
    names = [name for name, known in registry.module_dict.items() if known is owner]
    if not names:
        raise ConfigError(
            f"`{where}.type` is {getattr(kind, '__qualname__', kind)!r}, which is not registered; a stored model names "
            "its types, so register the class (@MODELS.register_module())"
        )
    if inspect.ismethod(kind) and way_to_build(owner, arguments) != kind:
        raise ConfigError(
            f"`{where}.type` is {kind.__qualname__!r}, but with the arguments {', '.join(arguments) or '(none)'} "
            f"{names[0]!r} is built in another way; name the class's usual one"
        )
    return names[0]


def from_json(value: Any, registry: Registry, where: str, folder: Path) -> Any:
    """A part of a config out of JSON that somebody else may have written.

    Args:
        value: JSON.
        registry: Types that may be built are the names in it; nothing is imported by a name.
        where: Its place, for errors.
        folder: The model's, for files in it.

    Returns:
        The config.

    Raises:
        ConfigError: A type that is not registered, or a path that leads out of the folder or to a place of one machine.
    """
    if isinstance(value, Mapping):
        if set(value) == {_TUPLE} and isinstance(value[_TUPLE], list):
            return tuple(from_json(item, registry, where, folder) for item in value[_TUPLE])
        if set(value) == {FILE}:
            return str(inside(folder, value[FILE], where))
        found = {}
        for key, item in value.items():
            if key.startswith("$"):
                raise ConfigError(
                    f"`{where}`: unknown entry {key!r}; a newer version of flmm_detseg may know it"
                )
            found[key] = from_json(item, registry, f"{where}.{key}", folder)
        if "type" in value:
            _check_type(value["type"], registry, where)
        return found
    if isinstance(value, list):
        return [from_json(item, registry, f"{where}[{i}]", folder) for i, item in enumerate(value)]
    if isinstance(value, str) and (
        Path(value).is_absolute() or value.startswith("~") or ".." in value.split("/")
    ):
        raise ConfigError(
            f"`{where}` is {value!r}: a stored model names hub names, files of its own folder, and paths below the "
            "current folder or the repository only"
        )
    return value


def inside(folder: Path, name: Any, where: str) -> Path:
    """A file or folder of a model's folder, by the name that the model gives it.

    Args:
        folder: The model's.
        name: Relative, with slashes.
        where: Its place, for errors.

    Returns:
        Its path; it need not exist.

    Raises:
        ConfigError: The name leads elsewhere. (Links are not followed: a hub's cache consists of them.)
    """
    path = PurePosixPath(name) if isinstance(name, str) else PurePosixPath("..")
    if path.is_absolute() or ".." in path.parts or "\\" in str(name) or not path.parts:
        raise ConfigError(f"`{where}`: {name!r} is no file inside of the model's folder")
    return folder.joinpath(*path.parts)


def _check_type(kind: Any, registry: Registry, where: str) -> None:
    registry.import_from_location()
    # Not `registry.get`: that imports whatever a name with dots says.
    if not isinstance(kind, str) or kind not in registry.module_dict:
        raise ConfigError(
            f"`{where}.type` is {kind!r}, which is not registered{suggest(str(kind), list(registry.module_dict))}; a "
            "class of your own has to be imported before the model is loaded"
        )
