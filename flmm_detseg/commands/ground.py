"""Grounds phrases of a caption in your own image and draws them.

flmm-detseg ground CONFIG --checkpoint FILE --image cat.jpg --caption "a cat on a mat" --phrase "a cat"
--out o.png

With --question "what is on the mat?" the model answers, and words of its answer are grounded. With --lmm in place of a
config any supported LMM grounds without training, by attention heads that `flmm-detseg rank-heads` has ranked:

flmm-detseg ground --lmm Qwen/Qwen3-VL-2B-Instruct --ranking ranking.json --image cat.jpg --caption "a cat on a mat"
--phrase "a cat" --out o.png

With several images, or with --format, --out is a folder: each image gets its picture NAME.png there, and each format a
folder of its own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flmm_detseg.commands.chosen_model import add_model_arguments, choose_model
from flmm_detseg.errors import DataError
from flmm_detseg.utils.cli import (
    add_detections_argument,
    add_export_arguments,
    add_presence_argument,
    check_export_arguments,
    refuse_unread,
)
from flmm_detseg.utils.outputs import refuse_folder_of_inputs, refuse_overwrite
from flmm_detseg.utils.paths import image_file
from flmm_detseg.utils.whole_files import write_json

if TYPE_CHECKING:
    from flmm_detseg.inference.export.coco import CocoFile
    from flmm_detseg.inference.grounder import Grounder
    from flmm_detseg.inference.result import GroundingResult


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    add_model_arguments(parser)
    parser.add_argument("--image", required=True, nargs="+", help="image files; the same text is for all")
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--caption", help="text that the model reads; default: the model's own description")
    text.add_argument("--question", help="what the model answers; words of the answer are grounded")
    parser.add_argument(
        "--phrase",
        action="append",
        default=[],
        help="part of the caption or answer; repeatable; default with --question: the answer's noun phrases",
    )
    parser.add_argument(
        "--span",
        action="append",
        default=[],
        metavar="START:END",
        help="characters of the caption; repeatable",
    )
    parser.add_argument(
        "--prompt", help="question before the caption; default: the config's description prompt"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="picture to write (.png or .jpg), or a folder"
    )
    add_presence_argument(parser)
    add_detections_argument(parser)
    add_export_arguments(parser)
    parser.add_argument("--boxes", action="store_true", help="draw the boxes too")
    parser.add_argument("--beside", action="store_true", help="show the image as it is beside the masks")
    parser.add_argument(
        "--style",
        choices=("tint", "contour"),
        default="tint",
        help="contour: borders alone, objects keep their colours; default: tint",
    )
    parser.add_argument(
        "--animation", type=Path, metavar="FILE",
        help="also write a picture that goes through the phrases, attention beside mask (.gif, .webp, .png)",
    )  # fmt: skip
    parser.add_argument(
        "--attention", type=Path, metavar="DIR", help="also write each phrase's best heads here"
    )
    parser.add_argument("--coco", type=Path, metavar="FILE", help="also write the masks as a COCO file")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Grounds the phrases, writes the files asked for.

    Args:
        arguments: As declared by :func:`add_arguments`.

    Returns:
        Figures for the last line: picture, caption, and per phrase score, box and area.

    Raises:
        FlmmError: Whatever the user can mend.
    """
    spans = _check(arguments)
    check_export_arguments(arguments, own_coco=arguments.coco is not None)
    if arguments.attention is not None:
        refuse_folder_of_inputs(arguments.attention, arguments.image)
    model = choose_model(arguments)
    files = [image_file(image, "--image") for image in arguments.image]
    pictures = _pictures(arguments, files)
    read = [*arguments.image, *model.files]
    for out in (*pictures, arguments.coco, arguments.animation):
        if out is not None:
            refuse_overwrite(out, read)
    # Late, so that a wrong argument is reported before torch is loaded.
    from flmm_detseg.visualization.animation import check_ending

    if arguments.animation is not None:
        check_ending(arguments.animation)
    from flmm_detseg.datasets.images import read_image
    from flmm_detseg.inference.export.coco import CocoFile
    from flmm_detseg.inference.export.folder import check_exports, exporting

    check_exports(arguments.format, arguments.out, arguments.polygon_tolerance)
    for file in files:
        read_image(file, "--image")  # before the model, which may take minutes
    grounder = model.load()
    coco = CocoFile(arguments.polygon_tolerance)
    found = []
    with exporting(
        arguments.format,
        arguments.out,
        polygon_tolerance=arguments.polygon_tolerance,
        url_prefix=arguments.url_prefix or "",
    ) as exports:
        for file, picture in zip(files, pictures, strict=True):
            result = _result(grounder, file, spans, arguments)
            exports.add(result, file)
            found.append(_write(result, file, picture, coco, arguments))
    figures: dict[str, Any] = found[0] if len(files) == 1 else {"results": found}
    if arguments.coco is not None:
        write_json(arguments.coco, coco.content(), indent=None)
        figures["coco"] = str(arguments.coco)
    return figures | ({"exports": exports.figures} if exports.figures else {})


def _pictures(arguments: argparse.Namespace, files: Sequence[Path]) -> list[Path]:
    """Where each image's picture goes: to --out itself, or into it where it is a folder."""
    if len(files) == 1 and not arguments.format and (arguments.out.suffix or not arguments.out.is_dir()):
        return [arguments.out]
    if arguments.out.suffix.lower() in (".png", ".jpg", ".jpeg"):
        raise DataError(
            f"--out {arguments.out}: several images, or --format, write several files; name a folder"
        )
    if arguments.animation is not None and len(files) > 1:
        raise DataError("--animation is one file, and there are several images; ground one at a time")
    refuse_folder_of_inputs(arguments.out, files)
    pictures = [arguments.out / f"{file.stem}.png" for file in files]
    for file, picture in zip(files, pictures, strict=True):
        if pictures.count(picture) > 1:
            raise DataError(f"--image {file}: another image has the same name; rename one of them")
    return pictures


def _result(
    grounder: Grounder, file: Path, spans: Sequence[tuple[int, int]], arguments: argparse.Namespace
) -> Any:
    """What is found in one image."""
    phrases = arguments.phrase or None
    keep_attention = arguments.attention is not None or arguments.animation is not None
    if arguments.question is not None:
        question = arguments.question
        if arguments.answer_with_detections:
            from flmm_detseg.inference.instructor import Instructor

            instructor = Instructor(grounder.model, answer_with_detections=arguments.answer_with_detections)
            question = instructor.with_detections(file, question)
        return grounder.ask(
            file,
            question,
            phrases,
            keep_attention=keep_attention,
            min_presence=arguments.min_presence,
        )
    caption = arguments.caption
    if caption is None:
        caption = grounder.answer(file, arguments.prompt)
    return grounder.ground(
        file,
        caption,
        phrases,
        spans=spans or None,
        prompt=arguments.prompt,
        keep_attention=keep_attention,
        min_presence=arguments.min_presence,
    )


def _write(
    result: GroundingResult, file: Path, picture: Path, coco: CocoFile, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Writes one image's pictures; its figures for the last line."""
    figures: dict[str, Any] = {"image": str(file)} if len(arguments.image) > 1 else {}
    overlay = result.save_overlay(
        picture, boxes=arguments.boxes, beside=arguments.beside, style=arguments.style
    )
    figures["overlay"] = str(overlay)
    if arguments.animation is not None and len(result):
        figures["animation"] = str(result.save_animation(arguments.animation))
    if arguments.attention is not None:
        own = f"{file.stem}_" if len(arguments.image) > 1 else ""
        figures["attention"] = [
            str(result.save_attention(arguments.attention / f"{own}phrase_{index + 1}.png", index))
            for index in range(len(result))
        ]
    annotations = coco.add(result, file.name)
    if not len(result):
        print(f"no phrase to ground in the answer {result.caption!r}: nothing is drawn", file=sys.stderr)
    keys = ("phrase", "score", "bbox", "area")
    entries = [{k: entry[k] for k in keys} for entry in annotations]
    if result.presence is not None:
        figures["presence"] = [round(float(value), 3) for value in result.presence]
        figures["not_found"] = list(result.not_found)
    if result.answer_presence is not None:
        figures["answer_presence"] = round(result.answer_presence, 3)
    if result.domain is not None:
        figures["out_of_domain"] = result.out_of_domain
        figures["distance"] = round(result.domain.score, 2)
    return figures | {"caption": result.caption, "phrases": entries}


def _check(arguments: argparse.Namespace) -> list[tuple[int, int]]:
    """Character spans, once it is clear what they count."""
    if arguments.question is None:
        refuse_unread(
            {"--answer-with-detections": arguments.answer_with_detections},
            "it is for the answer to --question",
        )
    if arguments.question is not None and (arguments.span or arguments.prompt is not None):
        raise DataError("--question takes neither --prompt (it is the question) nor --span (use --phrase)")
    if arguments.question is None and bool(arguments.phrase) == bool(arguments.span):
        raise DataError("give the phrases as --phrase TEXT, or as --span START:END (each repeatable)")
    if arguments.animation is not None and len(arguments.image) > 1:
        raise DataError("--animation is one file: give one image")
    if arguments.span and arguments.caption is None:
        raise DataError("--span counts characters of --caption: give both")
    return [_parse_span(text) for text in arguments.span]


def _parse_span(text: str) -> tuple[int, int]:
    start, _, end = text.partition(":")
    if not (start.isdigit() and end.isdigit()):
        raise DataError(f"--span {text!r}: two numbers of characters are needed, START:END")
    return int(start), int(end)
