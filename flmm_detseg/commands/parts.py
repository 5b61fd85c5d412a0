"""Commands that consist of several: `flmm-detseg evaluate refcoco`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from types import ModuleType


def add_parts(parser: argparse.ArgumentParser, parts: Mapping[str, ModuleType]) -> None:
    """Declares each part with the first line of its module's docstring as its help.

    Args:
        parser: Of the command they belong to.
        parts: By name; modules with ``add_arguments`` and ``run``. The parsed arguments hold the ``run`` of the part
            that was chosen.
    """
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, module in parts.items():
        text = module.__doc__ or ""
        part = commands.add_parser(
            name,
            help=text.partition("\n")[0].rstrip("."),
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        part.set_defaults(run=module.run)
        module.add_arguments(part)
