"""Follows a compound instruction about an image: text, boxes, masks, one overlay picture, one JSON (COCO RLE).

flmm-detseg infer configs/tiny/detseg_stability.py --checkpoint FILE --image scene.png
--instruction "detect the stars and segment the ring on the left" --out work_dirs/infer
"""

from __future__ import annotations

import argparse
from typing import Any

from flmm_detseg.utils.cli import (
    add_detections_argument,
    add_export_arguments,
    add_lmm_argument,
    add_presence_argument,
    check_export_arguments,
)
from flmm_detseg.utils.configs import config_file
from flmm_detseg.utils.paths import image_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument("config", help="config file of a model with detection and phrase heads")
    parser.add_argument("--checkpoint", help="trained parts (default: `load_from` of the config)")
    add_lmm_argument(parser)
    parser.add_argument("--image", required=True, nargs="+", help="image files")
    parser.add_argument("--instruction", required=True)
    parser.add_argument("--out", default="work_dirs/infer", help="folder for NAME.png and NAME.json")
    add_presence_argument(parser)
    add_detections_argument(parser)
    add_export_arguments(parser)
    parser.add_argument("--score-threshold", type=float, default=0.3, help="least score of a detection")
    parser.add_argument("--classes", nargs="+", help="what an open detection head is to find, any names")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--device")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Follows the instruction on every image.

    Args:
        args: As declared by :func:`add_arguments`.

    Returns:
        Figures for the last line: the instruction, and what was found and written per image.

    Raises:
        FlmmError: Whatever the user can mend.
    """
    check_export_arguments(args)
    files = [image_file(image, "--image") for image in args.image]
    config = config_file(args.config)
    from tqdm import tqdm

    from flmm_detseg.datasets.images import read_image
    from flmm_detseg.inference import Instructor
    from flmm_detseg.inference.export.folder import check_exports, exporting
    from flmm_detseg.inference.instructor import result_files, result_names
    from flmm_detseg.models import model_from_config
    from flmm_detseg.utils.outputs import refuse_overwrite

    names = result_names(args.image)
    check_exports(args.format, args.out, args.polygon_tolerance)
    for name in names:  # before a model is loaded
        for file in result_files(args.out, name):
            refuse_overwrite(file, [*args.image, config, args.checkpoint])
    for file in files:
        read_image(file, "--image")  # before the model, which may take minutes
    model = model_from_config(
        args.config, args.checkpoint, device=args.device, allow_other_lmm=args.allow_other_lmm
    )
    instructor = Instructor(
        model,
        score_threshold=args.score_threshold,
        classes=args.classes,
        min_presence=args.min_presence,
        answer_with_detections=args.answer_with_detections or False,
    )
    figures = []
    with exporting(
        args.format, args.out, polygon_tolerance=args.polygon_tolerance, url_prefix=args.url_prefix or ""
    ) as exports:
        for image, file, name in zip(tqdm(args.image, desc="images"), files, names, strict=True):
            result = instructor.follow(file, args.instruction, max_new_tokens=args.max_new_tokens)
            exports.add(result, file)
            written = result.save(args.out, name)
            figures.append({"image": image, "text": result.text, "regions": len(result.regions), **written})
    exported = {"exports": exports.figures} if exports.figures else {}
    return {"instruction": args.instruction, "results": figures, **exported}
