"""Whole answers: words, boxes and masks that the model writes in one text, on the config's `joint_eval`.

flmm-detseg evaluate joint CONFIG --checkpoint FILE [--base-prompt TEXT] [--teacher-forced]

Boxes (F1 of all classes together), masks (gIoU) and answers are measured in the same run, with what could not be read,
was cut off, or was repeated; 95 % intervals by image. `--base-prompt` also asks the LMM as it was, and measures the
boxes of its answers in the same way. `--teacher-forced` reads the reference answers instead, for masks alone.
Several processes, and runs that go on where they stopped: see `flmm-detseg evaluate refcoco --help`.
"""

from __future__ import annotations

import argparse
from typing import Any

from flmm_detseg.commands.evaluate.arguments import add_common_arguments, common_options
from flmm_detseg.utils.choices import TEXT_FORMATS
from flmm_detseg.utils.cli import refuse_unread
from flmm_detseg.utils.configs import config_file

_LONGEST, _FORMAT = 512, "boxed_caption"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    add_common_arguments(parser)
    parser.add_argument("--max-new-tokens", type=int, help=f"length of an answer (default {_LONGEST})")
    parser.add_argument(
        "--teacher-forced", action="store_true", help="read the reference answers; masks alone are measured"
    )
    parser.add_argument("--base-prompt", help="also ask the LMM as it was, and measure its boxes")
    parser.add_argument(
        "--base-format", choices=TEXT_FORMATS, help=f"how its answers are read (default {_FORMAT})"
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
    if args.teacher_forced:
        refuse_unread(
            {"--max-new-tokens": args.max_new_tokens, "--base-prompt": args.base_prompt},
            "with --teacher-forced no answer is written; leave it out",
        )
    if args.base_prompt is None:
        refuse_unread(
            {"--base-format": args.base_format}, "the LMM as it was is not asked; add --base-prompt"
        )
    config_file(args.config)
    from flmm_detseg.engine.evaluation.evaluate import evaluate
    from flmm_detseg.engine.evaluation.joint import JOINT, JointOptions

    return evaluate(
        JointOptions(
            max_new_tokens=_LONGEST if args.max_new_tokens is None else args.max_new_tokens,
            teacher_forced=args.teacher_forced,
            base_prompt=args.base_prompt,
            base_format=args.base_format or _FORMAT,
            **common_options(args),
        ),
        JOINT,
    )
