"""Labels images with boxes of Grounding DINO, masks of SAM and lines of text: one COCO JSON to train on.

flmm-detseg label images --classes mug kettle "tv|television" --out pseudo.json \
    --detector IDEA-Research/grounding-dino-tiny --segmenter facebook/sam-vit-base
flmm-detseg label images --ground-truth train.json --out merged.json --detector FOLDER
flmm-detseg label screenshots --texts --out texts.json --phrases texts.jsonl

The licences of checkpoints are theirs: check that you may train on what they label. A second run goes on where the
first one stopped. Ends with one line of JSON; exit status 2 on an error.
"""

from __future__ import annotations

import argparse
from typing import Any

from flmm_detseg.errors import ConfigError
from flmm_detseg.labelling.thresholds import Thresholds
from flmm_detseg.utils.cli import refuse_unread


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument("images", help="folder of the images")
    parser.add_argument(
        "--list", help="text file with the images to label, relative to the folder, one a line"
    )
    parser.add_argument("--out", required=True, help="COCO JSON to write")
    wanted = parser.add_mutually_exclusive_group()
    wanted.add_argument("--classes", nargs="+", help='class names; "tv|television": with synonyms')
    wanted.add_argument("--categories", help="COCO JSON whose categories are looked for")
    parser.add_argument(
        "--ground-truth", help="COCO JSON whose annotations are kept (default classes: its own)"
    )
    parser.add_argument(
        "--detector", help="Grounding DINO: hub name or folder (default: none, for --texts alone)"
    )
    parser.add_argument("--segmenter", help="SAM: hub name or folder (default: no masks)")
    parser.add_argument(
        "--texts", action="store_true", help="also lines of text, read by RapidOCR (extra `ocr`): class text"
    )
    parser.add_argument(
        "--phrases",
        metavar="FILE",
        help="with --texts: JSONL of own data, each text as the phrase `the word X`",
    )
    parser.add_argument(
        "--text-height", type=float, help="of a line of text, at least, in pixels (default: 0)"
    )
    parser.add_argument(
        "--text-scale", type=float, help="enlargement in which texts are looked for (default: 1)"
    )
    parser.add_argument("--text-threads", type=int, help="CPU threads that look for texts (default: 1)")
    rules = Thresholds()
    parser.add_argument(
        "--box-threshold", type=float,
        help=f"of the detector: score of a token of the prompt, at least (default: {rules.box})",
    )  # fmt: skip
    parser.add_argument(
        "--text-threshold", type=float,
        help=f"of the detector: score of a token of the class, at least (default: {rules.text})",
    )  # fmt: skip
    parser.add_argument("--nms", type=float, default=rules.nms, help="largest overlap of two boxes (IoU)")
    parser.add_argument("--min-score", type=float, default=rules.min_score, help="score of a label, at least")
    parser.add_argument("--max-boxes", type=int, default=rules.max_boxes, help="labels of an image, at most")
    parser.add_argument(
        "--batch-size", type=int, default=4, help="images per step; those of one size are one batch"
    )
    parser.add_argument("--device", help="of detector and segmenter: cpu (default), cuda, cuda:1, ...")
    parser.add_argument("--skip", action="store_true", help="leave unreadable images out instead of stopping")
    parser.add_argument("--fresh", action="store_true", help="label again what an earlier run has done")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Does it.

    Args:
        args: As declared by :func:`add_arguments`.

    Returns:
        Figures for the last line.

    Raises:
        FlmmError: Whatever the user can mend.
    """
    from flmm_detseg.labelling.run import LabelOptions, pseudo_label
    from flmm_detseg.labelling.texts import TextOptions

    given = {"min_height": args.text_height, "scale": args.text_scale, "num_threads": args.text_threads}
    given = {name: value for name, value in given.items() if value is not None}
    if given and not args.texts:
        raise ConfigError("options of texts are given, but not --texts: add it, or leave them out")
    detection = {"box": args.box_threshold, "text": args.text_threshold}
    if args.detector is None:
        flags = {f"--{name}-threshold": value for name, value in detection.items()}
        refuse_unread({**flags, "--device": args.device}, "it is of the detector; add --detector")
    thresholds = Thresholds(
        **{name: value for name, value in detection.items() if value is not None},
        nms=args.nms,
        min_score=args.min_score,
        max_boxes=args.max_boxes,
    )
    return pseudo_label(
        LabelOptions(
            image_dir=args.images,
            out=args.out,
            detector=args.detector,
            segmenter=args.segmenter,
            classes=tuple(args.classes) if args.classes else None,
            categories=args.categories,
            ground_truth=args.ground_truth,
            image_list=args.list,
            thresholds=thresholds,
            batch_size=args.batch_size,
            device=args.device or "cpu",
            policy="skip" if args.skip else "raise",
            fresh=args.fresh,
            texts=TextOptions(**given) if args.texts else None,
            phrases=args.phrases,
        )
    )
