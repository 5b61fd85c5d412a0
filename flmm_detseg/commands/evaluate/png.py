"""Panoptic narrative grounding: average recall on the data sets of the config's `png_eval`.

flmm-detseg evaluate png CONFIG --checkpoint FILE

Several processes, and runs that go on where they stopped: see `flmm-detseg evaluate refcoco --help`.
"""

from __future__ import annotations

import argparse
from typing import Any

from flmm_detseg.commands.evaluate.arguments import add_common_arguments, add_phrases_argument, common_options
from flmm_detseg.utils.cli import add_presence_argument
from flmm_detseg.utils.configs import config_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    add_common_arguments(parser)
    add_phrases_argument(parser)
    add_presence_argument(parser)


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
    from flmm_detseg.engine.evaluation.phrases import PNG, PhraseOptions

    options = PhraseOptions(phrases=args.phrases, min_presence=args.min_presence, **common_options(args))
    return evaluate(options, PNG)
