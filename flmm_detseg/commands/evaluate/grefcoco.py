"""Generalised referring segmentation: as `flmm-detseg evaluate reason`, on the config's `grefcoco_eval`.

flmm-detseg evaluate grefcoco CONFIG --checkpoint FILE [--convention lisa|gsva|rela|vision_reasoner] [--teacher-forced]

Expressions name one object, several or none. `gsva` is how GSVA reports gRefCOCO, `rela` how GRES does.
Runs go on where they stopped. Several processes:
`torchrun --nproc_per_node 2 -m flmm_detseg.cli evaluate grefcoco ...`; the figures are the same.
"""

from __future__ import annotations

import argparse
from typing import Any

from flmm_detseg.commands.evaluate.arguments import (
    add_common_arguments,
    add_mask_answer_arguments,
    answering_options,
    common_options,
)
from flmm_detseg.utils.configs import config_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    add_common_arguments(parser)
    add_mask_answer_arguments(parser)
    parser.add_argument(
        "--sentences", choices=("first", "all"), help="which sentences (default: the config's)"
    )


def run(args: argparse.Namespace) -> dict[str, Any] | None:
    """Evaluates.

    Args:
        args: As declared by :func:`add_arguments`.

    Returns:
        Figures for the last line; None in every process but the first.

    Raises:
        FlmmError: Whatever the user can mend.
    """
    answering = answering_options(args)
    config_file(args.config)
    from flmm_detseg.engine.evaluation.evaluate import evaluate
    from flmm_detseg.engine.evaluation.mask_answers import GREFCOCO, MaskAnswerOptions

    return evaluate(
        MaskAnswerOptions(
            sentences=args.sentences,
            convention=args.convention,
            **answering,
            **common_options(args),
        ),
        GREFCOCO,
    )
