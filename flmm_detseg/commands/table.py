"""Trains and evaluates a list of configs and writes one table: metrics, trainable parameters, peak memory, time.

Stopped and started again, it goes on where it was.
"""

from __future__ import annotations

import argparse
from typing import Any

from flmm_detseg.utils.cli import stop_children_at_sigterm
from flmm_detseg.utils.configs import config_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument("plan", help="Python file with `stages`, `evaluations` and `columns`")
    parser.add_argument("--work-dir", help="folder of all runs (default: work_dirs/PLAN_NAME)")
    parser.add_argument("--columns", nargs="+", default=[], help="metrics, EVALUATION.METRIC")
    parser.add_argument("--slots", type=int, default=2, help="runs side by side")
    parser.add_argument("--fresh", action="store_true", help="repeat what is done")
    parser.add_argument(
        "--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for every training"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the plan and writes its table.

    Args:
        args: As declared by :func:`add_arguments`.

    Returns:
        Figures for the last line.

    Raises:
        FlmmError: Whatever the user can mend.
    """
    config_file(args.plan, "plan")
    stop_children_at_sigterm()
    from flmm_detseg.experiments.ablation import ablation_table

    return ablation_table(
        args.plan,
        args.work_dir,
        columns=args.columns,
        slots=args.slots,
        fresh=args.fresh,
        cfg_options=tuple(args.cfg_options),
    )
