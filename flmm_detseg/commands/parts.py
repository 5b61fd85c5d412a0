"""Commands that consist of several: `flmm-detseg evaluate refcoco`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from flmm_detseg.utils.cli import Command


def add_parts(parser: argparse.ArgumentParser, parts: Mapping[str, Command]) -> None:
    """Declares each part with the first line of its docstring as its help.

    Args:
        parser: Of the command they belong to.
        parts: By name. The parsed arguments hold the ``run`` of the part
            that was chosen.
    """
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in parts.items():
        text = command.__doc__ or ""
        part = commands.add_parser(
            name,
            help=text.partition("\n")[0].rstrip("."),
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        part.set_defaults(run=command.run)
        command.add_arguments(part)
