"""Reads every record of a data set and reports each one that cannot be used, with file and record.

flmm-detseg data check jsonl FILE [--image-dir DIR] [--preview picture.png]
flmm-detseg data check refcoco REFS INSTANCES IMAGE_DIR [--splits train val]
flmm-detseg data check grefcoco REFS INSTANCES IMAGE_DIR [--splits train val]
flmm-detseg data check png NARRATIVES PANOPTIC_JSON PANOPTIC_DIR IMAGE_DIR
flmm-detseg data check grandf FILE IMAGE_DIR
flmm-detseg data check coco ANN_FILE IMAGE_DIR [--masks]
flmm-detseg data check semantic LABEL_DIR IMAGE_DIR --classes ade20k [--reduce-zero-label]
flmm-detseg data check llava FILE IMAGE_DIR
flmm-detseg data check reasonseg FOLDER [--explanations FILE]
flmm-detseg data check questions FILE IMAGE_DIR
flmm-detseg data check config CONFIG

VOC XML files: flmm-detseg data voc --skip lists each faulty one.

Ends with one line of JSON; exit status 2 if there is any problem.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from flmm_detseg.errors import DataError
from flmm_detseg.utils.cli import print_figures, refuse_unread
from flmm_detseg.utils.configs import config_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--preview", metavar="PNG", help="picture of some samples with masks and phrases")
    common.add_argument("--num-preview", type=int, help="samples of each data set in the picture (default 6)")
    kinds = parser.add_subparsers(dest="kind", required=True)
    jsonl = kinds.add_parser("jsonl", parents=[common], help="own data (docs/own_data.md)")
    jsonl.add_argument("file")
    jsonl.add_argument("--image-dir", help="start of relative paths (default: the file's folder)")
    jsonl.add_argument("--allow-empty", action="store_true", help="phrases without an object are no problem")
    for kind, names in (("refcoco", "RefCOCO, RefCOCO+, RefCOCOg, refCLEF"), ("grefcoco", "gRefCOCO")):
        refcoco = kinds.add_parser(kind, parents=[common], help=names)
        for name in ("refs_file", "instances_file", "image_dir"):
            refcoco.add_argument(name)
        refcoco.add_argument("--splits", nargs="+", default=["train"])
    grandf = kinds.add_parser("grandf", parents=[common], help="grounded captions (GLaMM's GranD-f)")
    grandf.add_argument("file")
    grandf.add_argument("image_dir")
    png = kinds.add_parser("png", parents=[common], help="panoptic narrative grounding")
    for name in ("narratives_file", "panoptic_json", "panoptic_dir", "image_dir"):
        png.add_argument(name)
    coco = kinds.add_parser("coco", parents=[common], help="COCO instances, own boxes")
    coco.add_argument("ann_file")
    coco.add_argument("image_dir")
    coco.add_argument("--masks", action="store_true", help="decode the masks as well")
    semantic = kinds.add_parser("semantic", parents=[common], help="label maps (ADE20K's form)")
    semantic.add_argument("label_dir")
    semantic.add_argument("image_dir")
    semantic.add_argument(
        "--classes", nargs="+", required=True, help="class names, or the name of a known set"
    )
    semantic.add_argument(
        "--reduce-zero-label", action="store_true", help="0 is unknown, class i has the value i + 1"
    )
    llava = kinds.add_parser("llava", parents=[common], help="LLaVA conversations")
    llava.add_argument("file")
    llava.add_argument("image_dir")
    reasonseg = kinds.add_parser("reasonseg", parents=[common], help="ReasonSeg: images with JSON files")
    reasonseg.add_argument("folder")
    reasonseg.add_argument("--explanations", metavar="FILE", help="LISA's explanatory/train.json")
    questions = kinds.add_parser(
        "questions", parents=[common], help="question files (data vqav2, textvqa, ocrvqa)"
    )
    questions.add_argument("file")
    questions.add_argument("image_dir")
    config = kinds.add_parser("config", parents=[common], help="all data sets of a config file")
    config.add_argument("file")


def run(args: argparse.Namespace) -> None:
    """Reads the data; prints its figures itself, since they come before the error.

    Args:
        args: As declared by :func:`add_arguments`.

    Raises:
        DataError: There are problems.
    """
    if args.preview is None:
        refuse_unread({"--num-preview": args.num_preview}, "there is no picture; add --preview PNG")
    if args.kind == "config":
        config_file(args.file)
    from flmm_detseg.engine.checks.data_check import check_data

    figures, num_problems = check_data(_chosen(args), args.preview, 6 if args.num_preview is None else args.num_preview)
    print_figures(figures)
    if num_problems:
        raise DataError(f"{num_problems} problems, listed above")


def _chosen(args: argparse.Namespace) -> Mapping[str, Mapping[str, Any]]:
    from flmm_detseg.datasets import (
        COCOInstancesDataset,
        GranDfDataset,
        GRefCOCODataset,
        JSONLDataset,
        LLaVAInstructDataset,
        PNGDataset,
        QuestionDataset,
        ReasonSegDataset,
        RefCOCODataset,
        SemanticMapsDataset,
    )
    from flmm_detseg.engine.checks.data_check import datasets_of_config

    if args.kind == "jsonl":
        entry = dict(
            type=JSONLDataset, file=args.file, image_dir=args.image_dir, allow_empty=args.allow_empty
        )
        return {args.file: entry}
    if args.kind in ("refcoco", "grefcoco"):
        files = {name: getattr(args, name) for name in ("refs_file", "instances_file", "image_dir")}
        reader = RefCOCODataset if args.kind == "refcoco" else GRefCOCODataset
        return {f"{args.kind} {split}": dict(type=reader, split=split, **files) for split in args.splits}
    if args.kind == "grandf":
        return {args.file: dict(type=GranDfDataset, file=args.file, image_dir=args.image_dir)}
    if args.kind == "png":
        names = ("narratives_file", "panoptic_json", "panoptic_dir", "image_dir")
        return {"png": dict(type=PNGDataset, **{name: getattr(args, name) for name in names})}
    if args.kind == "coco":
        entry = dict(
            type=COCOInstancesDataset, ann_file=args.ann_file, image_dir=args.image_dir, with_masks=args.masks
        )
        return {args.ann_file: entry}
    if args.kind == "semantic":
        classes = args.classes[0] if len(args.classes) == 1 else args.classes
        entry = dict(
            type=SemanticMapsDataset, label_dir=args.label_dir, image_dir=args.image_dir, classes=classes,
            reduce_zero_label=args.reduce_zero_label,
        )  # fmt: skip
        return {args.label_dir: entry}
    if args.kind == "llava":
        return {args.file: dict(type=LLaVAInstructDataset, file=args.file, image_dir=args.image_dir)}
    if args.kind == "reasonseg":
        entry = dict(type=ReasonSegDataset, folder=args.folder, explanations_file=args.explanations)
        return {args.folder: entry}
    if args.kind == "questions":
        return {args.file: dict(type=QuestionDataset, file=args.file, image_dir=args.image_dir)}
    return datasets_of_config(args.file)

