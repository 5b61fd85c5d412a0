"""Stores what a training learned without the state of the training: a file to use and to pass on.

flmm-detseg export heads CONFIG --checkpoint work_dirs/NAME/iter_N.pth --out heads.pth
"""

from __future__ import annotations

import argparse
from typing import Any

from flmm_detseg.utils.cli import add_lmm_argument
from flmm_detseg.utils.configs import config_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument("config", help="config of the model")
    parser.add_argument("--checkpoint", required=True, help="what training wrote")
    add_lmm_argument(parser)
    parser.add_argument("--out", required=True, help="file to write")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Writes the file.

    Args:
        args: As declared by :func:`add_arguments`.

    Returns:
        Figures for the last line.

    Raises:
        FlmmError: Whatever the user can mend.
    """
    config_file(args.config)
    from flmm_detseg.models.export_heads import export_heads

    return export_heads(args.config, args.checkpoint, args.out, allow_other_lmm=args.allow_other_lmm)
