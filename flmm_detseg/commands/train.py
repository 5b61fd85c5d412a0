"""Trains a config; the same as `xtuner train CONFIG`, in this process and with an exit code that shows failure."""

from __future__ import annotations

import argparse
from typing import Any

from flmm_detseg.utils.cli import add_lmm_argument
from flmm_detseg.utils.configs import config_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument("config", help="config file, or the name of a shipped one")
    parser.add_argument("--work-dir", help="folder of the run (default: work_dirs/CONFIG_NAME)")
    parser.add_argument(
        "--resume", nargs="?", const="auto", help="checkpoint to go on from; alone: the last one"
    )
    parser.add_argument(
        "--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of config values"
    )
    add_lmm_argument(parser)
    parser.add_argument("--seed", type=int)
    parser.add_argument(
        "--deepspeed", help="name or JSON of a DeepSpeed config (CPU: configs/deepspeed/zero2_cpu.json)"
    )
    parser.add_argument(
        "--launcher",
        choices=["none", "pytorch", "slurm", "mpi"],
        help="who started the processes (default: pytorch under torchrun or accelerate, else none)",
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> dict[str, Any] | None:
    """Trains.

    Args:
        args: As declared by :func:`add_arguments`.

    Returns:
        Figures for the last line; None in every process but the first.

    Raises:
        FlmmError: Whatever the user can mend.
    """
    config_file(args.config)
    from flmm_detseg.engine.training.trainer import TrainOptions, default_launcher, train

    other = ("model.allow_other_lmm=True",) if args.allow_other_lmm else ()
    return train(
        TrainOptions(
            config=args.config,
            work_dir=args.work_dir,
            resume=args.resume,
            cfg_options=(*args.cfg_options, *other),
            seed=args.seed,
            deepspeed=args.deepspeed,
            launcher=args.launcher or default_launcher(),
        )
    )
