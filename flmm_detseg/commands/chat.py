"""Talks about an image in the terminal: questions, instructions, outlines; a picture for each turn.

flmm-detseg chat --image data/models/tiny_heads/scene.png
flmm-detseg chat CONFIG --checkpoint FILE --image cat.jpg --out work_dirs/chat
flmm-detseg chat --lmm Qwen/Qwen3-VL-2B-Instruct --ranking ranking.json --image cat.jpg

A line is a question ("what is above the ring ?"), an instruction ("detect the cars and segment the tree on the left",
in English or Chinese), or a command (:help lists them). In a pipe the lines are read to the end.

Without a model it takes the repository's tiny one, which was trained on single questions, never on several turns.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flmm_detseg.commands.chosen_model import add_model_arguments, choose_model
from flmm_detseg.utils.cli import add_detections_argument, add_presence_argument, refuse_unread
from flmm_detseg.utils.outputs import refuse_folder_of_inputs
from flmm_detseg.utils.paths import image_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    add_model_arguments(parser)
    parser.add_argument("--image", required=True, help="image file to begin with")
    parser.add_argument(
        "--out", type=Path, default=Path("work_dirs/chat"), metavar="DIR",
        help="folder for the pictures, NAME_001.png and so on; nothing in it is overwritten (default: work_dirs/chat)",
    )  # fmt: skip
    add_presence_argument(parser)
    add_detections_argument(parser)
    parser.add_argument("--boxes", action="store_true", help="draw the boxes of masks too")
    parser.add_argument(
        "--score-threshold", type=float,
        help="of a model with a detection head: least score of a detection (default 0.3)",
    )  # fmt: skip
    parser.add_argument("--max-new-tokens", type=int, default=128, help="longest answer")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Reads lines from the standard input and answers each of them.

    Args:
        arguments: As declared by :func:`add_arguments`.

    Returns:
        Figures for the last line: turns, phrases, files written.

    Raises:
        FlmmError: Whatever the user can mend before the conversation begins; later errors are sentences in it.
    """
    model = choose_model(arguments)
    if arguments.lmm is not None:
        refuse_unread(
            {
                "--score-threshold": arguments.score_threshold,
                "--answer-with-detections": arguments.answer_with_detections,
            },
            "the model of --lmm has no detection head; leave it out",
        )
    file = image_file(arguments.image, "--image")
    refuse_folder_of_inputs(arguments.out, [file, *filter(None, model.files)])
    # Late, so that a wrong argument is reported before torch is loaded.
    from flmm_detseg.datasets.images import read_image

    read_image(file, "--image")  # before the model, which may take minutes
    from flmm_detseg.inference.terminal_chat import TerminalChat

    grounder = model.load()
    chat = TerminalChat(
        grounder,
        file,
        arguments.out,
        say=_say,
        max_new_tokens=arguments.max_new_tokens,
        score_threshold=0.3 if arguments.score_threshold is None else arguments.score_threshold,
        boxes=arguments.boxes,
        min_presence=arguments.min_presence,
        answer_with_detections=arguments.answer_with_detections or False,
    )
    typed = sys.stdin.isatty()
    return chat.talk(_typed_lines() if typed else _piped_lines(), echo=not typed)


def _typed_lines() -> Iterator[str]:
    """Lines of somebody at a keyboard, who can move in them and fetch earlier ones."""
    import readline  # noqa: F401  # `input` uses it where it is imported

    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return


def _piped_lines() -> Iterator[str]:
    if isinstance(sys.stdin, io.TextIOWrapper):
        # Bytes that are no text become half characters, which are refused in a sentence.
        sys.stdin.reconfigure(errors="surrogateescape")
    yield from sys.stdin


def _say(line: str) -> None:
    """Prints a line, letters that the terminal does not have by their codes."""
    encoding = sys.stdout.encoding or "ascii"
    print(line.encode(encoding, "backslashreplace").decode(encoding), flush=True)
