"""Writes TinyWorld in the real formats: python tools/make_tinyworld.py --out data/tinyworld --images 2500 --seed 0"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from flmm_detseg.datasets.tinyworld.world import WorldSpec, write_world
from flmm_detseg.utils.cli import run_tool


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to write; a different world there is an error"
    )
    parser.add_argument(
        "--images", type=int, default=2500, help="images in all splits together (default 2500)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1), help="drawing processes")
    args = parser.parse_args()
    started = time.perf_counter()
    manifest = write_world(args.out, WorldSpec(args.images, args.seed), workers=args.workers)
    return {
        "out": str(args.out),
        "written": manifest["written"],
        "version": manifest["version"],
        "seed": manifest["seed"],
        "counts": manifest["counts"],
        "seconds": round(time.perf_counter() - started, 1),
    }


if __name__ == "__main__":
    run_tool(main)
