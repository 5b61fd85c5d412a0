"""Trains the stages of a plan one after the other, each from the checkpoints before it, and evaluates.

Stopped and started again, it goes on where it was: runs that are done are kept, the one under way is resumed.
"""

from __future__ import annotations

import argparse
from typing import Any

from flmm_detseg.utils.cli import add_lmm_argument, stop_children_at_sigterm
from flmm_detseg.utils.configs import config_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument("plan", help="Python file with `stages` and `evaluations`")
    parser.add_argument("--work-dir", help="folder of all runs (default: work_dirs/PLAN_NAME)")
    parser.add_argument("--slots", type=int, default=2, help="runs of a stage side by side")
    parser.add_argument("--fresh", action="store_true", help="repeat what is done")
    parser.add_argument(
        "--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for every training"
    )
    add_lmm_argument(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the plan.

    Args:
        args: As declared by :func:`add_arguments`.

    Returns:
        Figures for the last line.

    Raises:
        FlmmError: Whatever the user can mend.
    """
    config_file(args.plan, "plan")
    stop_children_at_sigterm()
    from flmm_detseg.experiments.stages import run_plan

    other = ("model.allow_other_lmm=True",) if args.allow_other_lmm else ()
    return run_plan(
        args.plan,
        args.work_dir,
        slots=args.slots,
        fresh=args.fresh,
        cfg_options=(*args.cfg_options, *other),
    )
