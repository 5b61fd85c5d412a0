"""Writes TinyWorld in the real formats: flmm-detseg data tinyworld --out data/tinyworld --images 2500 --seed 0"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to write; a different world there is an error"
    )
    parser.add_argument(
        "--images", type=int, default=2500, help="images in all splits together (default 2500)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--reason",
        type=int,
        nargs=3,
        metavar=("TRAIN", "VAL", "TEST"),
        help="also write OUT/reason_seg_v2, the reasoning set: images of its splits (three queries each)",
    )
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1), help="drawing processes")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Does it.

    Args:
        args: As declared by :func:`add_arguments`.

    Returns:
        Figures for the last line.

    Raises:
        FlmmError: Whatever the user can mend.
    """
    from flmm_detseg.datasets.tinyworld.reason.files import write_reason
    from flmm_detseg.datasets.tinyworld.reason.spec import ReasonSpec
    from flmm_detseg.datasets.tinyworld.world import WorldSpec, write_world

    started = time.perf_counter()
    reason = None
    if args.reason:
        train, val, test = args.reason
        reason = ReasonSpec(train, val, test, args.seed)
    manifest = write_world(args.out, WorldSpec(args.images, args.seed), workers=args.workers)
    figures = {
        "out": str(args.out),
        "written": manifest["written"],
        "version": manifest["version"],
        "seed": manifest["seed"],
        "counts": manifest["counts"],
    }
    if reason is not None:
        written = write_reason(args.out / "reason_seg_v2", reason)
        figures["reason"] = {key: written[key] for key in ("written", "version", "counts")}
    return {**figures, "seconds": round(time.perf_counter() - started, 1)}
