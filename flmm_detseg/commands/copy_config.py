"""Writes a config with all that it inherits into one file, to be changed and trained from there.

flmm-detseg copy-config tiny/detseg_joint my_configs
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flmm_detseg.errors import ConfigError
from flmm_detseg.utils.configs import config_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument("config", help="name of a shipped config, or a config file")
    parser.add_argument(
        "to", nargs="?", type=Path, default=Path(), help="folder, or a file that ends in .py; default: here"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Writes the copy.

    Args:
        args: As declared by :func:`add_arguments`.

    Returns:
        Figures for the last line: the file.

    Raises:
        ConfigError: No such config, it cannot be read, or a file of that name is there.
    """
    source = config_file(args.config)
    out = args.to if args.to.suffix == ".py" else args.to / source.name
    if out.exists():
        raise ConfigError(
            f"{out} exists; name another folder or file (flmm-detseg copy-config CONFIG FOLDER)"
        )
    from flmm_detseg.models.from_config import dump_config

    return {"config": str(source), "out": str(dump_config(source, out))}
