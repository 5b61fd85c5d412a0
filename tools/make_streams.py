"""Writes TinyWorld's streams for the background cache: python tools/make_streams.py --out data/tinyworld_streams

Screens with a clock, a fixed camera and slides; questions about what changes, what stays, and both; readable by
`QuestionDataset` (JSONL), with the boxes of everything that changes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from flmm_detseg.datasets.tinyworld.stream_files import StreamSpec, write_streams
from flmm_detseg.utils.cli import run_tool


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    args = parser.parse_args()
    started = time.perf_counter()
    spec = StreamSpec(
        args.train_streams, args.val_streams, args.frames, args.questions, args.seed, args.train_questions
    )
    facts = write_streams(args.out, spec)
    return {"out": str(args.out), **facts, "seconds": round(time.perf_counter() - started, 1)}


if __name__ == "__main__":
    run_tool(main)
