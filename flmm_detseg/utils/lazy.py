"""Names of a package that are imported when they are used, so that importing the package costs nothing."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path


def lazy_names(package: str) -> Callable[[str], object]:
    """A package's ``__getattr__``: the names that its ``__init__.py`` imports under ``if TYPE_CHECKING:``.

    That block is what type checkers, editors and the import contracts read, and so the one place where names and their
    modules are listed::

        if TYPE_CHECKING:
            from package.module import Name
        __all__ = ["Name"]
        __getattr__ = lazy_names(__name__)

    A name that its module has as well cannot be listed: once the module is imported, it stands under that name.

    Args:
        package: ``__name__`` of the package.

    Returns:
        A function from a name to its object. It raises ``AttributeError`` for a name that is not listed, as Python
        wants it, and whatever the import of a listed one raises.
    """
    homes: dict[str, str] = {}

    def get(name: str) -> object:
        if not homes:
            homes.update(_homes(package))
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        # Looked up every time: what a test puts in the place of a name is seen, and gone afterwards.
        return getattr(importlib.import_module(homes[name]), name)

    return get


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
