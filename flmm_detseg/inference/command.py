"""The command line for one's own images: `python tools/ground.py`, `flmm-detseg ground`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flmm_detseg.errors import DataError
from flmm_detseg.utils.cli import add_lmm_argument
from flmm_detseg.utils.whole_files import dump_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument(
        "config", help="config of the model, e.g. configs/tiny/frozen_tiny_llava_refcoco_png.py"
    )
    parser.add_argument("--checkpoint", help="what training wrote; default: load_from of the config")
    parser.add_argument(
        "--untrained", action="store_true", help="accept random heads when there is no checkpoint"
    )
    add_lmm_argument(parser)
    parser.add_argument("--image", required=True, help="image file")
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
    parser.add_argument("--out", type=Path, required=True, help="picture to write (.png or .jpg)")
    parser.add_argument("--boxes", action="store_true", help="draw the boxes too")
    parser.add_argument(
        "--attention", type=Path, metavar="DIR", help="also write each phrase's best heads here"
    )
    parser.add_argument("--coco", type=Path, metavar="FILE", help="also write the masks as COCO annotations")
    parser.add_argument("--device", help='for example "cuda:0"; default: the GPU when there is one')


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Grounds the phrases, writes the files asked for.

    Returns:
        Figures for the last line: picture, caption, and per phrase score, box and area.

    Raises:
        FlmmError: Whatever the user can mend.
    """
    spans = _check(arguments)
    # Late, so that a wrong argument is told before torch is loaded.
    from flmm_detseg.inference.grounder import Grounder

    grounder = Grounder.from_config(
        arguments.config,
        arguments.checkpoint,
        arguments.device,
        untrained=arguments.untrained,
        allow_other_lmm=arguments.allow_other_lmm,
    )
    phrases, keep_attention = arguments.phrase or None, arguments.attention is not None
    if arguments.question is not None:
        result = grounder.ask(arguments.image, arguments.question, phrases, keep_attention=keep_attention)
    else:
        caption = arguments.caption
        if caption is None:
            caption = grounder.answer(arguments.image, arguments.prompt)
        result = grounder.ground(
            arguments.image,
            caption,
            phrases,
            spans=spans or None,
            prompt=arguments.prompt,
            keep_attention=keep_attention,
        )
    figures: dict[str, Any] = {"overlay": str(result.save_overlay(arguments.out, boxes=arguments.boxes))}
    if arguments.attention is not None:
        figures["attention"] = [
            str(result.save_attention(arguments.attention / f"phrase_{index + 1}.png", index))
            for index in range(len(result))
        ]
    annotations = result.to_coco(Path(arguments.image).name)
    if arguments.coco is not None:
        arguments.coco.parent.mkdir(parents=True, exist_ok=True)
        arguments.coco.write_text(dump_json(annotations), encoding="utf-8")
        figures["coco"] = str(arguments.coco)
    keys = ("phrase", "score", "bbox", "area")
    entries = [{k: entry[k] for k in keys} for entry in annotations]
    return figures | {"caption": result.caption, "phrases": entries}


def _check(arguments: argparse.Namespace) -> list[tuple[int, int]]:
    """Character spans, once it is clear what they count."""
    if arguments.question is not None and (arguments.span or arguments.prompt is not None):
        raise DataError("--question takes neither --prompt (it is the question) nor --span (use --phrase)")
    if arguments.question is None and bool(arguments.phrase) == bool(arguments.span):
        raise DataError("give the phrases as --phrase TEXT, or as --span START:END (each repeatable)")
    if arguments.span and arguments.caption is None:
        raise DataError("--span counts characters of --caption: give both")
    return [_parse_span(text) for text in arguments.span]


def _parse_span(text: str) -> tuple[int, int]:
    start, _, end = text.partition(":")
    if not (start.isdigit() and end.isdigit()):
        raise DataError(f"--span {text!r}: two numbers of characters are needed, START:END")
    return int(start), int(end)
