"""Converts TextVQA's file into the JSONL that configs and `flmm-detseg evaluate answers` read.

flmm-detseg data textvqa TextVQA_0.5.1_val.json --out FILE.jsonl [--images train_images] [--skip]

The ten answers stay together, so the accuracy is VQA's. `--ocr-tokens` puts the words of TextVQA's own OCR after each
question, as LLaVA's evaluation does: report figures with and without it. Prints every question that was skipped, ends
with one line of JSON; exit status 2 on an error.
"""

from __future__ import annotations

import argparse
from typing import Any

from flmm_detseg.commands.data.written_questions import write_questions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument("file", help="TextVQA_0.5.1_val.json")
    parser.add_argument("--out", required=True, help="JSONL to write")
    parser.add_argument(
        "--ocr-tokens", metavar="FILE", help="TextVQA_Rosetta_OCR_v0.2_val.json: words to put after questions"
    )
    parser.add_argument("--images", metavar="DIR", help="folder of the images, to look whether all are there")
    parser.add_argument(
        "--image-name", default="{}.jpg", help="file name by image id (default: %(default)s)"
    )
    parser.add_argument("--skip", action="store_true", help="leave unusable questions out instead of stopping")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Does it.

    Args:
        args: As declared by :func:`add_arguments`.

    Returns:
        Figures for the last line.

    Raises:
        FlmmError: Whatever the user can mend.
    """
    from flmm_detseg.datasets.textvqa import convert_textvqa
    from flmm_detseg.utils.outputs import refuse_overwrite

    refuse_overwrite(args.out, [args.file, args.ocr_tokens])
    lines, log = convert_textvqa(
        args.file,
        ocr_file=args.ocr_tokens,
        image_name=args.image_name,
        image_dir=args.images,
        policy="skip" if args.skip else "raise",
    )
    return write_questions(lines, args.out, log)
