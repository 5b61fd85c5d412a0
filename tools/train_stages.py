"""Trains the stages of a plan one after the other, each from the checkpoints before it, and evaluates.

Stopped and started again, it goes on where it was: runs that are done are kept, the one under way is resumed.
"""

from __future__ import annotations

import argparse
import signal
import sys
from typing import Any

from flmm_detseg.utils.cli import add_lmm_argument, run_tool


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plan", help="Python file with `stages` and `evaluations`")
    parser.add_argument("--work-dir", help="folder of all runs (default: work_dirs/PLAN_NAME)")
    parser.add_argument("--slots", type=int, default=2, help="runs of a stage side by side")
    parser.add_argument("--fresh", action="store_true", help="repeat what is done")
    parser.add_argument(
        "--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for every training"
    )
    add_lmm_argument(parser)
    args = parser.parse_args()

    if args.allow_other_lmm:
        args.cfg_options = [*args.cfg_options, "model.allow_other_lmm=True"]
    from flmm_detseg.experiments.stages import run_plan

    return run_plan(
        args.plan,
        args.work_dir,
        slots=args.slots,
        fresh=args.fresh,
        cfg_options=tuple(args.cfg_options),
    )


if __name__ == "__main__":
    # As an exception, so that the child processes are stopped too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    run_tool(main)
