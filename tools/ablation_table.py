"""Trains and evaluates a list of configs and writes one table: metrics, trainable parameters, peak memory, time.

Stopped and started again, it goes on where it was.
"""

from __future__ import annotations

import argparse
import signal
import sys
from typing import Any

from flmm_detseg.utils.cli import run_tool


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plan", help="Python file with `stages`, `evaluations` and `columns`")
    parser.add_argument("--work-dir", help="folder of all runs (default: work_dirs/PLAN_NAME)")
    parser.add_argument("--columns", nargs="+", default=[], help="metrics, EVALUATION.METRIC")
    parser.add_argument("--slots", type=int, default=2, help="runs side by side")
    parser.add_argument("--fresh", action="store_true", help="repeat what is done")
    parser.add_argument(
        "--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for every training"
    )
    args = parser.parse_args()

    from flmm_detseg.experiments.ablation import ablation_table

    return ablation_table(
        args.plan,
        args.work_dir,
        columns=args.columns,
        slots=args.slots,
        fresh=args.fresh,
        cfg_options=tuple(args.cfg_options),
    )


if __name__ == "__main__":
    # As an exception, so that the child processes are stopped too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    run_tool(main)
