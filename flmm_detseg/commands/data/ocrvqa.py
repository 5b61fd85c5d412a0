"""Converts OCR-VQA's file into the JSONL that configs and `flmm-detseg evaluate answers` read.

flmm-detseg data ocrvqa dataset.json --split test --out FILE.jsonl [--images images] [--skip]

Evaluate it by `--metric exact` (or `metric="exact"` of the data set, as in the recipes). Prints every book that was
skipped, ends with one line of JSON; exit status 2 on an error.
"""

from __future__ import annotations

import argparse
from typing import Any

from flmm_detseg.commands.data.written_questions import write_questions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument("file", help="dataset.json")
    parser.add_argument(
        "--split", default="test", help="train, val or test: 1, 2, 3 of the file (default: %(default)s)"
    )
    parser.add_argument("--out", required=True, help="JSONL to write")
    parser.add_argument("--images", metavar="DIR", help="folder of the covers, to look whether all are there")
    parser.add_argument(
        "--image-name",
        default="{id}{ext}",
        help="file name by book id and ending of the web address (default: %(default)s); LLaVA's: {id}.jpg",
    )
    parser.add_argument("--skip", action="store_true", help="leave unusable books out instead of stopping")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Does it.

    Args:
        args: As declared by :func:`add_arguments`.

    Returns:
        Figures for the last line.

    Raises:
        FlmmError: Whatever the user can mend.
    """
    from flmm_detseg.datasets.ocrvqa import convert_ocrvqa
    from flmm_detseg.utils.outputs import refuse_overwrite

    refuse_overwrite(args.out, [args.file])
    lines, log = convert_ocrvqa(
        args.file,
        args.split,
        image_name=args.image_name,
        image_dir=args.images,
        policy="skip" if args.skip else "raise",
    )
    return write_questions(lines, args.out, log, args.split)
