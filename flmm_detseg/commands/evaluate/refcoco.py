"""Referring segmentation: cIoU, gIoU, P@IoU and box accuracy on the data sets of the config's `refcoco_eval`.

flmm-detseg evaluate refcoco CONFIG --checkpoint FILE [--sentences first|all] [--mode split|concat]

Plain `flmm-detseg` and `python` run one process. Several: `accelerate launch tools/eval_refcoco.py CONFIG ...`; on a
machine without GPUs `accelerate launch --multi_gpu --num_processes 2` (accelerate's own --cpu needs MPI) or `torchrun
--nproc_per_node 2`. The figures are the same.
"""

from __future__ import annotations

import argparse
from typing import Any

from flmm_detseg.commands.evaluate.arguments import add_common_arguments, add_phrases_argument, common_options
from flmm_detseg.utils.choices import EMPTY_CONVENTIONS
from flmm_detseg.utils.configs import config_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    add_common_arguments(parser)
    add_phrases_argument(parser)
    parser.add_argument(
        "--sentences", choices=("first", "all"), help="which sentences (default: the config's)"
    )
    parser.add_argument(
        "--mode",
        choices=("split", "concat"),
        help="one text per expression, or per image (default: the config's)",
    )
    parser.add_argument(
        "--empty", choices=EMPTY_CONVENTIONS, default="skip", help="convention for targets without a pixel"
    )
    parser.add_argument("--threshold-sweep", action="store_true", help="also report the best mask threshold")


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
    from flmm_detseg.engine.evaluation.evaluate import evaluate
    from flmm_detseg.engine.evaluation.phrases import REFCOCO, PhraseOptions

    return evaluate(
        PhraseOptions(
            sentences=args.sentences,
            layout=args.mode,
            empty=args.empty,
            threshold_sweep=args.threshold_sweep,
            phrases=args.phrases,
            **common_options(args),
        ),
        REFCOCO,
    )
