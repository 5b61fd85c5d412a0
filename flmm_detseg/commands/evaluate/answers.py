"""Answers to questions: VQAv2 accuracy, exact match, ScienceQA, POPE, yes/no on the config's `vqa_eval`.

flmm-detseg evaluate answers CONFIG --checkpoint FILE [--questions FILE --images DIR]

FILE is JSONL with `question_id`, `image`, `text` and `answers` | `answer` | `label` (optionally `choices`,
`category`), or LLaVA conversations (.json). The answers go into a file in LLaVA's answer format.
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
    from flmm_detseg.engine.evaluation.answers import VQA, AnswerOptions
    from flmm_detseg.engine.evaluation.evaluate import evaluate

    return evaluate(
        AnswerOptions(
            questions=args.questions,
            images=args.images,
            metric=args.metric,
            max_new_tokens=args.max_new_tokens,
            **common_options(args),
        ),
        VQA,
    )
