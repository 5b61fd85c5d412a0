"""Converts ScienceQA's file into the JSONL that configs and `flmm-detseg evaluate answers` read.

flmm-detseg data scienceqa problems.json --split test --out FILE.jsonl [--images DIR] [--no-hints] [--skip]

Questions without an image are left out and counted. Scored by the letter of the answer; set "Answer with the option's
letter from the given choices directly." as the data set's `prompt_suffix`, as LLaVA's evaluation does. Prints every
problem that was skipped, ends with one line of JSON; exit status 2 on an error.
"""

from __future__ import annotations

import argparse
from typing import Any

from flmm_detseg.commands.data.written_questions import write_questions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument("file", help="problems.json")
    parser.add_argument("--split", default="test", help="train, val or test (default: %(default)s)")
    parser.add_argument("--out", required=True, help="JSONL to write")
    parser.add_argument(
        "--images", metavar="DIR", help="folder with SPLIT/ID/image.png, to look whether all are there"
    )
    parser.add_argument(
        "--no-hints", action="store_true", help="without the text that belongs to some questions"
    )
    parser.add_argument("--skip", action="store_true", help="leave unusable problems out instead of stopping")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Does it.

    Args:
        args: As declared by :func:`add_arguments`.

    Returns:
        Figures for the last line.

    Raises:
        FlmmError: Whatever the user can mend.
    """
    from flmm_detseg.datasets.scienceqa import convert_scienceqa
    from flmm_detseg.utils.outputs import refuse_overwrite

    refuse_overwrite(args.out, [args.file])
    lines, log = convert_scienceqa(
        args.file,
        args.split,
        hints=not args.no_hints,
        image_dir=args.images,
        policy="skip" if args.skip else "raise",
    )
    figures = write_questions(lines, args.out, log, args.split)
    return figures | {"without_image": len(log.dropped.get("no image", ()))}
