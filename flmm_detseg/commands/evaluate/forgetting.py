"""Forgetting: the adapted model's answers beside those of the untouched LMM, on the config's `vqa_eval`.

flmm-detseg evaluate forgetting CONFIG --checkpoint FILE [--questions FILE --images DIR]

Per set: accuracy of both, the difference in points with its 95 % interval, share of identical answers, rate of
unwanted task tokens and boxes, KL divergence from the untouched LMM. Files as in `flmm-detseg evaluate answers`.
Several processes, and runs that go on where they stopped: see `flmm-detseg evaluate refcoco --help`.
"""

from __future__ import annotations

import argparse
from typing import Any

from flmm_detseg.commands.evaluate.arguments import (
    add_common_arguments,
    add_question_arguments,
    common_options,
)
from flmm_detseg.utils.configs import config_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    add_common_arguments(parser)
    add_question_arguments(parser)
    parser.add_argument("--no-kl", action="store_true", help="leave the KL divergence out")


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
    from flmm_detseg.engine.evaluation.answers import FORGETTING, AnswerOptions
    from flmm_detseg.engine.evaluation.evaluate import evaluate

    return evaluate(
        AnswerOptions(
            questions=args.questions,
            images=args.images,
            metric=args.metric,
            max_new_tokens=args.max_new_tokens,
            kl=not args.no_kl,
            **common_options(args),
        ),
        FORGETTING,
    )
