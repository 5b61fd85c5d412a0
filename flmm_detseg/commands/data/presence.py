"""Writes TinyWorld's phrases that name nothing beside those that do: flmm-detseg data presence --out data/tinyworld_presence

Absent kinds, attributes, relations and places, exact by the scene, in own-data lines (JSONL) that say which: what a
presence head is trained, calibrated and measured on.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to write; other files there are an error"
    )
    parser.add_argument("--train", type=int, default=6000, help="scenes (default %(default)s)")
    parser.add_argument("--val", type=int, default=400, help="scenes to calibrate on (default %(default)s)")
    parser.add_argument("--test", type=int, default=500, help="scenes to measure on (default %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=15, help="of the scenes; 0 is the tiny models' own world"
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
    from flmm_detseg.datasets.tinyworld.presence_files import PresenceSpec, write_presence

    started = time.perf_counter()
    facts = write_presence(args.out, PresenceSpec(args.train, args.val, args.test, args.seed))
    return {"out": str(args.out), **facts, "seconds": round(time.perf_counter() - started, 1)}
