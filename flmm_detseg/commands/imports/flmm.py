"""Checks every key and shape of a published F-LMM checkpoint (file or DeepSpeed folder) and stores it in our form."""

from __future__ import annotations

import argparse
from typing import Any

from flmm_detseg.utils.configs import config_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument("source", help="plain file or DeepSpeed folder (iter_N.pth/)")
    parser.add_argument("config", help="config it belongs to")
    parser.add_argument("--out", required=True, help="file to write")
    parser.add_argument(
        "--lmm-config",
        help="config.json of the LMM, or its folder (default: where the config's `pretrained` points)",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Checks and stores the checkpoint.

    Args:
        args: As declared by :func:`add_arguments`.

    Returns:
        Figures for the last line.

    Raises:
        FlmmError: Whatever the user can mend.
    """
    config = config_file(args.config)
    from flmm_detseg.models.shapes import import_flmm_checkpoint
    from flmm_detseg.utils.outputs import refuse_overwrite

    refuse_overwrite(args.out, [args.source, config, args.lmm_config])
    return import_flmm_checkpoint(args.source, args.config, args.out, args.lmm_config)
