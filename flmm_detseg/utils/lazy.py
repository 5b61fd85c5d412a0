"""Names of a package that are imported when they are used, so that importing the package costs nothing."""

from __future__ import annotations

import ast
import functools
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path


def lazy_names(package: str) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """A package's ``__getattr__`` and ``__dir__``: the names that its ``__init__.py`` imports for type checkers only.

    Its block ``if TYPE_CHECKING:`` is what these, editors and the import contracts read, and so the one place where
    names and their modules are listed::

        if TYPE_CHECKING:
            from package.module import Name
        __all__ = ["Name"]
        __getattr__, __dir__ = lazy_names(__name__)

    A name that its module has as well cannot be listed: once the module is imported, it stands under that name.

    Args:
        package: ``__name__`` of the package.

    Returns:
        A function from a name to its object, and one that lists the names. The first finds the package's own modules,
        too; it raises ``AttributeError`` for anything else, as Python wants it, and whatever an import raises.
    """

    @functools.cache
    def homes() -> dict[str, str]:
        return _homes(package)

    def get(name: str) -> object:
        if name in homes():
            # Looked up every time: what a test puts in the place of a name is seen, and gone afterwards.
            return getattr(importlib.import_module(homes()[name]), name)
        module = f"{package}.{name}"
        if not name.startswith("_") and importlib.util.find_spec(module) is not None:
            return importlib.import_module(module)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes()})

    return get, names


def _homes(package: str) -> dict[str, str]:
    source = Path(sys.modules[package].__file__ or "").read_text(encoding="utf-8")
    homes = {
        alias.name: statement.module
        for node in ast.parse(source).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        if isinstance(statement, ast.ImportFrom) and statement.module
        for alias in statement.names
    }
    taken = [name for name, module in homes.items() if module.rpartition(".")[2] == name]
    assert not taken, (package, taken)
    return homes
