"""Lists the configs that come with this package: name, and what it is in a line."""

from __future__ import annotations

import argparse
import ast
from pathlib import Path
from typing import Any

from flmm_detseg.errors import ConfigError
from flmm_detseg.utils.configs import is_plan, shipped_configs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument("text", nargs="?", default="", help="only those that have it in name or description")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Prints the list.

    Args:
        args: As declared by :func:`add_arguments`.

    Returns:
        Figures for the last line: how many were listed.

    Raises:
        ConfigError: None has that text.
    """
    lines = {name: _first_line(path) for name, path in shipped_configs().items()}
    wanted = args.text.lower()
    lines = {name: text for name, text in lines.items() if wanted in f"{name} {text}".lower()}
    if not lines:
        raise ConfigError(f"no shipped config has {args.text!r} in its name or its description")
    width = max(map(len, lines))
    for name, text in lines.items():
        print(f"{name:<{width}}  {text}")
    return {"configs": len(lines)}


def _first_line(path: Path) -> str:
    text = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
    return f"[plan of several runs] {text}" if is_plan(path) else text
