"""What all command-line tools share: a truthful exit code, one clear error line, one JSON line at the end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import Any

from flmm_detseg.errors import FlmmError
from flmm_detseg.utils.whole_files import dump_json


def add_lmm_argument(parser: argparse.ArgumentParser) -> None:
    """Adds what every tool that loads a checkpoint has in common."""
    parser.add_argument(
        "--allow-other-lmm",
        action="store_true",
        help="accept a checkpoint that was trained on another LMM than the config's",
    )


def run_tool(main: Callable[[], Mapping[str, Any] | None]) -> None:
    """Runs a tool's ``main``, prints its figures as the last line (JSON) and exits.

    Args:
        main: Does the work and returns the figures to print, or None when another process prints them
            (for example every rank but the first).

    Exits with 0 on success, 2 on a :class:`FlmmError` (one line on stderr, no traceback); any other exception
    propagates with its traceback, which also gives a non-zero status.
    """
    try:
        figures = main()
        line = None if figures is None else dump_json(figures)
    except FlmmError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)
    if line is not None:
        print(line, flush=True)
    sys.exit(0)
