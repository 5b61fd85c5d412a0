"""Grounded conversation generation: AP50, mIoU and phrase recall of captions with masks, on the config's `gcg_eval`.

flmm-detseg evaluate gcg CONFIG --checkpoint FILE [--teacher-forced]

Phrases are alike from a token F1 of 0.5 on, not by BERT's features as GLaMM compares them. METEOR and CIDEr of the
captions are not computed.
Runs go on where they stopped. Several processes:
`torchrun --nproc_per_node 2 -m flmm_detseg.cli evaluate gcg ...`; the figures are the same.
"""

from __future__ import annotations

import argparse
from typing import Any

from flmm_detseg.commands.evaluate.arguments import (
    add_answering_arguments,
    add_common_arguments,
    answering_options,
    common_options,
)
from flmm_detseg.utils.configs import config_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    add_common_arguments(parser)
    add_answering_arguments(parser)


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
    from flmm_detseg.engine.evaluation.mask_answers import GCG, MaskAnswerOptions

    return evaluate(
        MaskAnswerOptions(
            **answering,
            **common_options(args),
        ),
        GCG,
    )
