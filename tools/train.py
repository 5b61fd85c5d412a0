"""Trains a config; the same as `xtuner train CONFIG`, in this process and with a truthful exit code."""

from __future__ import annotations

import argparse
from typing import Any

from flmm_detseg.utils.cli import add_lmm_argument, run_tool


def main() -> dict[str, Any] | None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file")
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
    args = parser.parse_args()

    if args.allow_other_lmm:
        args.cfg_options = [*args.cfg_options, "model.allow_other_lmm=True"]
    from flmm_detseg.engine.training.trainer import TrainOptions, default_launcher, train

    return train(
        TrainOptions(
            config=args.config,
            work_dir=args.work_dir,
            resume=args.resume,
            cfg_options=tuple(args.cfg_options),
            seed=args.seed,
            deepspeed=args.deepspeed,
            launcher=args.launcher or default_launcher(),
        )
    )


if __name__ == "__main__":
    run_tool(main)
