"""Writes TinyWorld's streams for the background cache: flmm-detseg data streams --out data/tinyworld_streams

Screens with a clock, a fixed camera and slides; questions about what changes, what stays, and both; readable by
`QuestionDataset` (JSONL), with the boxes of everything that changes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from flmm_detseg.datasets.tinyworld.stream_spec import StreamSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    default = StreamSpec()
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to write; other streams there are an error"
    )
    parser.add_argument(
        "--train-streams", type=int, default=default.train_streams, help="of every kind (default %(default)s)"
    )
    parser.add_argument(
        "--val-streams", type=int, default=default.val_streams, help="of every kind (default %(default)s)"
    )
    parser.add_argument(
        "--frames", type=int, default=default.num_frames, help="of a stream (default %(default)s)"
    )
    parser.add_argument(
        "--questions",
        type=int,
        default=default.num_questions,
        help="about a frame of the split val, at most (default %(default)s)",
    )
    parser.add_argument(
        "--train-questions",
        type=int,
        default=default.train_questions,
        help="about a frame of the split train, at most (default %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=default.seed)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Does it.

    Args:
        args: As declared by :func:`add_arguments`.

    Returns:
        Figures for the last line.

    Raises:
        FlmmError: Whatever the user can mend.
    """
    from flmm_detseg.datasets.tinyworld.stream_files import write_streams

    started = time.perf_counter()
    spec = StreamSpec(
        args.train_streams, args.val_streams, args.frames, args.questions, args.seed, args.train_questions
    )
    facts = write_streams(args.out, spec)
    return {"out": str(args.out), **facts, "seconds": round(time.perf_counter() - started, 1)}
