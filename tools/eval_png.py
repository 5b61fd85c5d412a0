"""Panoptic narrative grounding: average recall on the data sets of the config's `png_eval`.

accelerate launch tools/eval_png.py CONFIG --checkpoint FILE
"""

from __future__ import annotations

import argparse

from flmm_detseg.engine.evaluate import PNG, EvaluationOptions, evaluate
from flmm_detseg.utils.cli import run_tool
from flmm_detseg.utils.eval_arguments import add_common_arguments, common_options


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_arguments(parser)
    args = parser.parse_args()
    run_tool(lambda: evaluate(EvaluationOptions(**common_options(args)), PNG))


if __name__ == "__main__":
    main()
