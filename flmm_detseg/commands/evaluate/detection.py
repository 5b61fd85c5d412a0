"""Detection and instance segmentation: COCO's AP and AR of boxes and masks on the config's `coco_eval`.

flmm-detseg evaluate detection CONFIG --checkpoint FILE [--boxes head|text] [--backend pycocotools|faster]

`--boxes text` reads the boxes from the model's answers instead: precision, recall, F1, and AP with the probabilities of
their numbers as scores.
The answers also go into a file in COCO's results format.
Several processes, and runs that go on where they stopped: see `flmm-detseg evaluate refcoco --help`.
"""

from __future__ import annotations

import argparse
from typing import Any

from flmm_detseg.commands.evaluate.arguments import add_common_arguments, common_options
from flmm_detseg.utils.choices import BOX_SOURCES, COCO_BACKENDS, TEXT_FORMATS
from flmm_detseg.utils.cli import refuse_unread
from flmm_detseg.utils.configs import config_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    add_common_arguments(parser)
    parser.add_argument(
        "--boxes", choices=BOX_SOURCES, default="head", help="detection head, or answers in words"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, help="with --boxes text: length of an answer (default 1024)"
    )
    parser.add_argument(
        "--text-format",
        choices=TEXT_FORMATS,
        help="with --boxes text: how answers are asked for and read (default template)",
    )
    parser.add_argument(
        "--backend", choices=COCO_BACKENDS, default="pycocotools", help="what computes the figures"
    )
    parser.add_argument(
        "--annotation-file", help="COCO file with targets and areas (default: the data set's samples)"
    )
    parser.add_argument("--classwise", action="store_true", help="also AP of every class")


def run(args: argparse.Namespace) -> dict[str, Any] | None:
    """Evaluates.

    Args:
        args: As declared by :func:`add_arguments`.

    Returns:
        Figures for the last line; None in every process but the first.

    Raises:
        FlmmError: Whatever the user can mend.
    """
    if args.boxes != "text":
        refuse_unread(
            {"--max-new-tokens": args.max_new_tokens, "--text-format": args.text_format},
            "the head writes no answer; add --boxes text",
        )
    config_file(args.config)
    from flmm_detseg.engine.evaluation.dense import COCO_BOXES, BoxOptions
    from flmm_detseg.engine.evaluation.evaluate import evaluate

    return evaluate(
        BoxOptions(
            boxes=args.boxes,
            max_new_tokens=1024 if args.max_new_tokens is None else args.max_new_tokens,
            text_format=args.text_format or "template",
            backend=args.backend,
            annotation_file=args.annotation_file,
            classwise=args.classwise,
            **common_options(args),
        ),
        COCO_BOXES,
    )
