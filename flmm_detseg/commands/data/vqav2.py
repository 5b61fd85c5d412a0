"""Joins VQAv2's questions and annotations into the JSONL that configs and `flmm-detseg evaluate answers` read.

flmm-detseg data vqav2 QUESTIONS.json ANNOTATIONS.json --out FILE.jsonl [--only-images instances_val2017.json]
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

from flmm_detseg.commands.data.written_questions import write_questions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument("questions", help="v2_OpenEnded_mscoco_val2014_questions.json")
    parser.add_argument("annotations", help="v2_mscoco_val2014_annotations.json")
    parser.add_argument("--out", required=True, help="JSONL to write")
    parser.add_argument(
        "--only-images",
        nargs="+",
        metavar="FILE",
        help="keep questions about these images: COCO JSON, or a list of ids",
    )
    parser.add_argument(
        "--image-name",
        default="{:012d}.jpg",
        help="file name by COCO id (default: %(default)s, that of train2017 and val2017)",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Does it.

    Args:
        args: As declared by :func:`add_arguments`.

    Returns:
        Figures for the last line.

    Raises:
        FlmmError: Whatever the user can mend.
    """
    from flmm_detseg.datasets.image_ids import read_images
    from flmm_detseg.datasets.vqav2 import convert_vqav2
    from flmm_detseg.utils.outputs import refuse_overwrite

    refuse_overwrite(args.out, [args.questions, args.annotations, *(args.only_images or ())])
    kept = None if args.only_images is None else read_images(args.only_images)
    lines = convert_vqav2(args.questions, args.annotations, images=kept, image_name=args.image_name)
    types = dict(Counter(line["category"] for line in lines))
    return write_questions(lines, args.out) | {"answer_types": types}
