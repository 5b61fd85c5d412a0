"""Joins POPE's files into the JSONL that configs and `flmm-detseg evaluate answers` read.

flmm-detseg data pope coco_pope_random.json coco_pope_popular.json coco_pope_adversarial.json --out FILE.jsonl

The category of a question is its file's kind (random, popular, adversarial). `--metric pope` (or `metric="pope"` of the
data set) reads free answers as POPE's own evaluation does; without it, they have to begin with yes or no. Prints every
line that was skipped, ends with one line of JSON; exit status 2 on an error.
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

from flmm_detseg.commands.data.written_questions import write_questions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="coco_pope_random.json and others")
    parser.add_argument("--out", required=True, help="JSONL to write")
    parser.add_argument("--images", metavar="DIR", help="val2014, to look whether all images are there")
    parser.add_argument("--skip", action="store_true", help="leave unusable lines out instead of stopping")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Does it.

    Args:
        args: As declared by :func:`add_arguments`.

    Returns:
        Figures for the last line.

    Raises:
        FlmmError: Whatever the user can mend.
    """
    from flmm_detseg.datasets.pope import convert_pope
    from flmm_detseg.utils.outputs import refuse_overwrite

    refuse_overwrite(args.out, args.files)
    lines, log = convert_pope(args.files, image_dir=args.images, policy="skip" if args.skip else "raise")
    figures = write_questions(lines, args.out, log)
    return figures | {"categories": dict(Counter(line["category"] for line in lines))}
