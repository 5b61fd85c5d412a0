"""What all command-line tools share: an exit code that shows failure, one error line, one JSON line at the end."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from flmm_detseg.errors import ConfigError, FlmmError
from flmm_detseg.utils.choices import BOX_WORDS, EXPORT_FORMATS
from flmm_detseg.utils.faults import explain, interrupted, last_words
from flmm_detseg.utils.whole_files import dump_json


class Command(Protocol):
    """A command, mostly a module, whose docstring is its help."""

    def add_arguments(self, parser: argparse.ArgumentParser, /) -> None:
        """Declares the arguments of :meth:`run`."""

    def run(self, args: argparse.Namespace, /) -> Any:
        """Does it; returns figures for the last line."""


def add_lmm_argument(parser: argparse.ArgumentParser) -> None:
    """Adds what every tool that loads a checkpoint has in common."""
    parser.add_argument(
        "--allow-other-lmm",
        action="store_true",
        help="accept a checkpoint that was trained on another LMM than the config's",
    )


def add_presence_argument(parser: argparse.ArgumentParser) -> None:
    """Adds what commands have in common that find phrases in pictures (docs/presence.md)."""
    parser.add_argument(
        "--min-presence", type=_presence, metavar="P",
        help="least probability that there is what a phrase names, or `stored`: the threshold fitted with the model's "
        "presence head; below it nothing is drawn",
    )  # fmt: skip


def add_detections_argument(parser: argparse.ArgumentParser) -> None:
    """Adds what commands have in common that let an LMM answer questions (docs/python_api.md)."""
    parser.add_argument(
        "--answer-with-detections", nargs="?", const="template", choices=BOX_WORDS, metavar="WORDS",
        help="give the LMM before each question what the model's detection head found; template (the default): "
        "`Detections: car [12, 40, 380, 912]`, tinyworld: in the tiny LLaVA's words",
    )  # fmt: skip


def _presence(text: str) -> float | str:
    try:
        return text if text == "stored" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a probability nor 'stored'") from None


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what commands have in common that write results in the formats of other tools (docs/exports.md)."""
    parser.add_argument(
        "--format", nargs="+", default=[], choices=EXPORT_FORMATS,
        help="also write all results in these formats, to folders of these names in --out",
    )  # fmt: skip
    parser.add_argument(
        "--polygon-tolerance", type=float, metavar="SHARE",
        help="COCO masks as polygons where their IoU with the mask is at least 1 - SHARE; default: run lengths",
    )  # fmt: skip
    parser.add_argument(
        "--url-prefix",
        help="Label Studio: what stands before the images' names, such as /data/local-files/?d=photos/",
    )  # fmt: skip


def check_export_arguments(arguments: argparse.Namespace, *, own_coco: bool = False) -> None:
    """Refuses settings of formats that were not asked for.

    Args:
        arguments: As declared by :func:`add_export_arguments`.
        own_coco: The command writes a COCO file besides.

    Raises:
        ConfigError: Names the setting and its format.
    """
    if "label-studio" not in arguments.format:
        refuse_unread(
            {"--url-prefix": arguments.url_prefix},
            "it goes before the images' names of Label Studio; add --format label-studio",
        )
    if "coco" not in arguments.format and not own_coco:
        refuse_unread(
            {"--polygon-tolerance": arguments.polygon_tolerance}, "it is for COCO files; add --format coco"
        )


def refuse_unread(flags: Mapping[str, object], reason: str) -> None:
    """Refuses flags that nothing would read beside the other arguments.

    Args:
        flags: Values as they were parsed, by the flags' names; None and False: it was not given.
        reason: Why nothing reads them, and the remedy.

    Raises:
        ConfigError: One of them was given.
    """
    if given := [flag for flag, value in flags.items() if value is not None and value is not False]:
        raise ConfigError(f"{', '.join(given)} would change nothing: {reason}")


def run_as_tool(command: Command) -> None:
    """Runs a command as a script of its own, ``python tools/NAME.py``.

    Args:
        command: Its docstring is the description.
    """
    parser = argparse.ArgumentParser(
        description=command.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_arguments(parser)
    arguments = parser.parse_args()
    run_tool(lambda: command.run(arguments))


def stop_children_at_sigterm() -> None:
    """Makes an exception of SIGTERM, so that the child processes of a command are stopped with it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def run_tool(main: Callable[[], Mapping[str, Any] | None]) -> None:
    """Runs a tool's ``main``, prints its figures as the last line (JSON) and exits.

    Args:
        main: Does the work and returns the figures to print, or None when another process prints them
            (for example every rank but the first).

    Exits with 0 on success, 2 on a :class:`FlmmError`, 3 on a fault of the machine (a full disk, no permission, ...),
    130 when interrupted; each of these is one line on stderr, no traceback. Any other exception propagates with its
    traceback, which also gives a non-zero status.

    Raises:
        SystemExit: With these codes.
    """
    try:
        figures = main()
        if figures is not None:
            print_figures(figures)
    except (Exception, KeyboardInterrupt) as error:
        ended = in_one_line(error)
        if ended is None:
            raise
        print(ended[0], file=sys.stderr)
        sys.exit(ended[1])
    sys.exit(0)


def in_one_line(error: BaseException) -> tuple[str, int] | None:
    """The message of an error for the user, and the exit code; None where the traceback has to be seen."""
    if isinstance(error, FlmmError):
        return f"{type(error).__name__}: {last_words(error)}", 2
    if interrupted(error):
        return (
            "interrupted: what was finished is whole; the same command (training: with --resume) goes on",
            130,
        )
    fault = explain(error)
    return None if fault is None else (f"{type(error).__name__}: {fault}", 3)


def print_figures(figures: Mapping[str, Any]) -> None:
    """Prints a line of JSON, with its letters escaped where the terminal's encoding has no such ones."""
    line = dump_json(figures)
    try:
        line.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        line = dump_json(figures, ascii=True)
    print(line, flush=True)
