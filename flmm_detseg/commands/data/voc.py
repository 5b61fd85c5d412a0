"""Converts Pascal VOC annotations (a folder of XML files) to one COCO JSON.

flmm-detseg data voc Annotations JPEGImages --out train.json [--list ImageSets/Main/train.txt] [--skip]

Prints every file that was skipped, ends with one line of JSON; exit status 2 on an error.
"""

from __future__ import annotations

import argparse
from typing import Any

from flmm_detseg.utils.choices import DIFFICULT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument("xml_dir", help="folder of the XML files")
    parser.add_argument("image_dir", help="folder of the images")
    parser.add_argument("--out", required=True, help="COCO JSON to write")
    parser.add_argument("--list", help="text file with the names to read (default: every XML file)")
    parser.add_argument("--classes", nargs="+", help="class names in order (default: those found, sorted)")
    parser.add_argument(
        "--first-pixel",
        type=int,
        default=1,
        choices=(0, 1),
        help="coordinate of the first pixel (default: 1)",
    )
    parser.add_argument("--difficult", default="ignore", choices=DIFFICULT, help="objects marked difficult")
    parser.add_argument("--skip", action="store_true", help="leave faulty files out instead of stopping")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Does it.

    Args:
        args: As declared by :func:`add_arguments`.

    Returns:
        Figures for the last line.

    Raises:
        FlmmError: Whatever the user can mend.
    """
    from flmm_detseg.datasets.voc import VOCOptions, convert_voc, read_stems, write_coco
    from flmm_detseg.utils.outputs import refuse_overwrite
    from flmm_detseg.utils.paths import find

    # A JSON file among the images is no image: an earlier result, to be replaced.
    images = (path for path in find(args.image_dir).rglob("*") if path.suffix.lower() != ".json")
    refuse_overwrite(args.out, [args.list, *find(args.xml_dir).rglob("*.xml"), *images])
    options = VOCOptions(
        classes=tuple(args.classes) if args.classes else None,
        stems=read_stems(args.list) if args.list else None,
        first_pixel=args.first_pixel,
        difficult=args.difficult,
        policy="skip" if args.skip else "raise",
    )
    content, log = convert_voc(args.xml_dir, args.image_dir, options)
    for problem in log.problems:
        print(f"{problem.kind}: {problem}", flush=True)
    write_coco(content, args.out)
    return {
        "out": args.out,
        "images": len(content["images"]),
        "annotations": len(content["annotations"]),
        "classes": [category["name"] for category in content["categories"]],
        "skipped": log.counts(),
        "dropped": {reason: len(records) for reason, records in log.dropped.items()},
    }
