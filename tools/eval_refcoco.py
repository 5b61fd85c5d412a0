"""Referring segmentation: cIoU, gIoU, P@IoU and box accuracy on the data sets of the config's `refcoco_eval`.

accelerate launch tools/eval_refcoco.py CONFIG --checkpoint FILE [--sentences first|all] [--mode split|concat]

Plain `python` runs one process. Several on a machine without GPUs: `accelerate launch --multi_gpu --num_processes 2`
(accelerate's own --cpu needs MPI) or `torchrun --nproc_per_node 2`. The figures are the same.
"""

from __future__ import annotations

import argparse

from flmm_detseg.engine.evaluation.arguments import add_common_arguments, add_phrases_argument, common_options
from flmm_detseg.engine.evaluation.evaluate import evaluate
from flmm_detseg.engine.evaluation.phrases import REFCOCO, PhraseOptions
from flmm_detseg.evaluation.ref_seg_metric import EMPTY_CONVENTIONS
from flmm_detseg.utils.cli import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_arguments(parser)
    add_phrases_argument(parser)
    parser.add_argument(
        "--sentences", choices=("first", "all"), help="which sentences (default: the config's)"
    )
    parser.add_argument(
        "--mode",
        choices=("split", "concat"),
        help="one text per expression, or per image (default: the config's)",
    )
    parser.add_argument(
        "--empty", choices=EMPTY_CONVENTIONS, default="skip", help="convention for targets without a pixel"
    )
    parser.add_argument("--threshold-sweep", action="store_true", help="also report the best mask threshold")
    args = parser.parse_args()
    run_tool(
        lambda: evaluate(
            PhraseOptions(
                sentences=args.sentences,
                layout=args.mode,
                empty=args.empty,
                threshold_sweep=args.threshold_sweep,
                phrases=args.phrases,
                **common_options(args),
            ),
            REFCOCO,
        )
    )


if __name__ == "__main__":
    main()
