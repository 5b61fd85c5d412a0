"""Presence: N-acc, T-acc, AUROC and calibration on the data sets of the config's `presence_eval`.

flmm-detseg evaluate presence CONFIG --checkpoint FILE [--question TEXT]

Beside the presence head: the mask's score alone, the LMM's own answer to a question, and "always there". Of questions
that are answered with masks the LMM's own answer is whether it has one.
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
        "--question",
        help="what the LMM itself is asked about phrases, with {phrase}; tinyworld: in the tiny LLaVA's words; none: "
        "nothing (default: Is there {phrase} in the image? Answer yes or no.)",
    )
    parser.add_argument(
        "--min-presence", type=float, help="threshold (default: the one fitted with the presence head)"
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
    config_file(args.config)
    from flmm_detseg.engine.evaluation.evaluate import evaluate
    from flmm_detseg.engine.evaluation.presence import PRESENCE, PresenceOptions

    options = PresenceOptions(question=args.question, min_presence=args.min_presence, **common_options(args))
    return evaluate(options, PRESENCE)
