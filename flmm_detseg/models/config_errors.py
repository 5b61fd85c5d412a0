"""What is wrong with a config file that MMEngine cannot read, or reads and cannot use, in a sentence with its line."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.config.utils import ConfigParsingError

_LAZY = (
    "what a config imports is only named there, not imported until it is used: it may stand as a value "
    "(`type=CLASS`), but a config cannot call it, index it or compute with it. Write the value itself (plain Python: "
    "numbers, texts, f-strings, comprehensions), or set it on the command line with --cfg-options"
)

_COPY = "take a copy of it in one file first, which both ways of inheriting read: `flmm-detseg copy-config NAME FOLDER`"
_CHAIN = (
    "a config that imports anything (those of this package do) is not inherited with `_base_ = [...]`, and one with "
    "`_base_` is not inherited by such a config, nor may it import anything above that line. Inherit with "
    "`with read_base():` and `from .NAME import *`; or " + _COPY
)
_BASE_IMPORT = (
    "`with read_base():` finds configs by relative imports (`from .NAME import *`, `from ..FOLDER.NAME import *`), "
    "which begin at the folder of the file that has them. For a config that lies elsewhere, " + _COPY
)
# Of MMEngine's errors about such an import.
_BASE_NOT_FOUND = ("`with read_base(): = from", "should not be an independent package")


def explain_config_error(error: Exception, path: Path) -> str:
    """The end of an error message for whatever reading a config raised.

    Args:
        error: Of ``Config.fromfile``; MMEngine raises some without a text.
        path: The config.

    Returns:
        Where in the user's files it happened, as far as that is known, and what is wrong there.
    """
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else None
    # A base of the config may be at fault: its frame is the last one of a file that lies with configs.
    own = next((frame for frame in reversed(frames) if _is_config(frame.filename, path)), None)
    where = "" if own is None else f"{_shown(own.filename, path)}line {own.lineno} (`{own.line}`): "
    lazy = last is not None and Path(last.filename).name == "lazy.py" and not str(error)
    if lazy or "LazyObject" in str(error) or "LazyAttr" in str(error):
        return f"{where}{_LAZY}"
    if "inheritance chain must match" in str(error):
        return f"{where}{_CHAIN}"
    if isinstance(error, ConfigParsingError) and any(text in str(error) for text in _BASE_NOT_FOUND):
        return f"{where}{_BASE_IMPORT} (MMEngine says: {str(error).partition('!')[0]})"
    if not str(error):
        raised = "" if last is None else f" raised by {last.name} in {last.filename}, line {last.lineno}"
        return f"{where}{type(error).__name__}{raised}"
    return f"{where}{type(error).__name__}: {error}"


def relative_import(config: Config) -> str | None:
    """Where a config takes something from another config outside of ``read_base``; None: nowhere."""
    for lazy in _lazies(config._cfg_dict._to_lazy_dict()):
        module = lazy._module if isinstance(lazy._module, str) else lazy._module[0]
        if module.startswith("."):
            return (
                f"{lazy.location}: `from {module} import {lazy._imported}` reads another config, which works inside of "
                "`with read_base():` only (from mmengine.config import read_base)"
            )
    return None


def _is_config(filename: str, path: Path) -> bool:
    return Path(filename) == path or (
        "mmengine" not in filename and path.parent.parent in Path(filename).parents
    )


def _shown(filename: str, path: Path) -> str:
    return "" if Path(filename) == path else f"in {filename} "


def _lazies(node: Any) -> Iterator[LazyObject]:
    if isinstance(node, LazyAttr):
        node = node.source
        yield from _lazies(node)
    elif isinstance(node, LazyObject):
        yield node
    elif isinstance(node, dict):
        for value in dict.values(node):
            yield from _lazies(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _lazies(value)
