"""Command-line arguments that the evaluation tools share."""

from __future__ import annotations

import argparse
from typing import Any

from flmm_detseg.utils.cli import add_lmm_argument


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of every evaluation tool."""
    parser.add_argument("config", help="config file")
    parser.add_argument("--checkpoint", help="trained parts (default: `load_from` of the config)")
    parser.add_argument(
        "--untrained", action="store_true", help="evaluate heads as initialised if there is no checkpoint"
    )
    add_lmm_argument(parser)
    parser.add_argument(
        "--splits", nargs="+", default=(), help="data sets or splits (default: all of the config)"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="samples read and recorded per step")
    parser.add_argument(
        "--num-threads", type=int, default=1, help="CPU threads per process; sums depend on it"
    )
    parser.add_argument("--num-workers", type=int, default=0, help="reading processes per evaluating process")
    parser.add_argument("--limit", type=int, help="only the first samples of each data set")
    parser.add_argument("--work-dir", help="records and results (default: work_dirs/<config name>/eval)")
    parser.add_argument("--out", help="results file (default: in the work dir)")
    parser.add_argument("--fresh", action="store_true", help="evaluate again what an earlier run has done")
    parser.add_argument(
        "--cfg-options", nargs="+", default=(), metavar="KEY=VALUE", help="overrides of the config"
    )


def add_phrases_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the control of the phrase evaluations."""
    parser.add_argument(
        "--phrases",
        choices=("own", "shuffled"),
        default="own",
        help="shuffled: control with other images' phrases",
    )


def add_question_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the evaluations of answers share."""
    parser.add_argument("--questions", help="question file instead of the config's data sets")
    parser.add_argument("--images", help="folder of the images of --questions")
    parser.add_argument(
        "--metric", help="vqav2, exact, scienceqa, pope, yes_no or open for all (default: by the question)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=128, help="length of an answer")


def common_options(args: argparse.Namespace) -> dict[str, Any]:
    """The shared part of the evaluation options."""
    return {
        "config": args.config,
        "checkpoint": args.checkpoint,
        "untrained": args.untrained,
        "allow_other_lmm": args.allow_other_lmm,
        "splits": tuple(args.splits),
        "batch_size": args.batch_size,
        "num_threads": args.num_threads,
        "num_workers": args.num_workers,
        "limit": args.limit,
        "work_dir": args.work_dir,
        "out": args.out,
        "fresh": args.fresh,
        "cfg_options": tuple(args.cfg_options),
    }
