"""Grounds phrases of a caption in your own image and draws them.

python tools/ground.py CONFIG --checkpoint FILE --image cat.jpg --caption "a cat on a mat" --phrase "a cat"
--out o.png

With --question "what is on the mat?" the model answers, and words of its answer are grounded.
"""

from __future__ import annotations

import argparse

from flmm_detseg.inference.command import add_arguments, run
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
