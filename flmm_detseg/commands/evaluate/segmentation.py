"""Semantic segmentation: mIoU, accuracy, boundary F1 and boundary IoU on the config's `semseg_eval`.

flmm-detseg evaluate segmentation CONFIG --checkpoint FILE [--classwise]

Several processes, and runs that go on where they stopped: see `flmm-detseg evaluate refcoco --help`.
"""

from __future__ import annotations

import argparse
from typing import Any

from flmm_detseg.commands.evaluate.arguments import add_common_arguments, common_options
from flmm_detseg.utils.configs import config_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    add_common_arguments(parser)
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.0075,
        help="of the boundary F1: a share of the image diagonal, from 1 on pixels",
    )
    parser.add_argument(
        "--band", type=float, default=0.02, help="of the boundary IoU: a share of the image diagonal"
    )
    parser.add_argument("--classwise", action="store_true", help="also IoU of every class")


def run(args: argparse.Namespace) -> dict[str, Any] | None:
    """Evaluates.

    Args:
        args: As declared by :func:`add_arguments`.

    Returns:
        Figures for the last line; None in every process but the first.

    Raises:
        FlmmError: Whatever the user can mend.
    """
    config_file(args.config)
    from flmm_detseg.engine.evaluation.dense import SEMANTIC_MAPS, MapOptions
    from flmm_detseg.engine.evaluation.evaluate import evaluate

    return evaluate(
        MapOptions(
            tolerance=args.tolerance, band=args.band, classwise=args.classwise, **common_options(args)
        ),
        SEMANTIC_MAPS,
    )
