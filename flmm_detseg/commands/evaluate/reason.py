"""Reasoning segmentation: gIoU, cIoU, N-acc, T-acc and `[SEG]` counts of the model's own answers, on `reason_eval`.

flmm-detseg evaluate reason CONFIG --checkpoint FILE [--convention lisa|gsva|rela|vision_reasoner] [--teacher-forced]

The model is asked each query and answers freely. `--teacher-forced` reads the reference answer instead, as LISA
validates: missing and superfluous masks cannot show then. All figures have 95 % intervals.
Runs go on where they stopped. Several processes:
`torchrun --nproc_per_node 2 -m flmm_detseg.cli evaluate reason ...`; the figures are the same.
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
    from flmm_detseg.engine.evaluation.mask_answers import REASON, MaskAnswerOptions

    return evaluate(
        MaskAnswerOptions(
            convention=args.convention,
            **answering,
            **common_options(args),
        ),
        REASON,
    )
