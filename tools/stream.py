"""Answers questions about a stream of images, computing no background twice (docs/background_cache.md).

python tools/stream.py CONFIG --checkpoint FILE --images FRAMES --question "what time is it ?"

A line per request says what served it and how long that took; then come the cache's statistics. --compare asks
everything again without the cache and fails when an answer differs.
"""

from __future__ import annotations

import argparse

from flmm_detseg.inference.stream_command import add_arguments, run
from flmm_detseg.utils.cli import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    arguments = parser.parse_args()
    run_tool(lambda: run(arguments))


if __name__ == "__main__":
    main()
