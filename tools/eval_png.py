"""Panoptic narrative grounding: average recall on the data sets of the config's `png_eval`.

accelerate launch tools/eval_png.py CONFIG --checkpoint FILE

Plain `python` runs one process. Several on a machine without GPUs: `accelerate launch --multi_gpu --num_processes 2`
(accelerate's own --cpu needs MPI) or `torchrun --nproc_per_node 2`. The figures are the same.
"""

from __future__ import annotations

import argparse

from flmm_detseg.engine.evaluation.arguments import add_common_arguments, add_phrases_argument, common_options
from flmm_detseg.engine.evaluation.evaluate import evaluate
from flmm_detseg.engine.evaluation.phrases import PNG, PhraseOptions
from flmm_detseg.utils.cli import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_arguments(parser)
    add_phrases_argument(parser)
    args = parser.parse_args()
    run_tool(lambda: evaluate(PhraseOptions(phrases=args.phrases, **common_options(args)), PNG))


if __name__ == "__main__":
    main()
