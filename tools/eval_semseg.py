"""Semantic segmentation: mIoU, accuracy, boundary F1 and boundary IoU on the config's `semseg_eval`.

accelerate launch tools/eval_semseg.py CONFIG --checkpoint FILE [--classwise]

Sharded and resumable as the other evaluation tools: see tools/eval_refcoco.py.
"""

from __future__ import annotations

import argparse

from flmm_detseg.engine.evaluation.arguments import add_common_arguments, common_options
from flmm_detseg.engine.evaluation.dense import SEMANTIC_MAPS, MapOptions
from flmm_detseg.engine.evaluation.evaluate import evaluate
from flmm_detseg.utils.cli import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_arguments(parser)
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.0075,
        help="of the boundary F1: a share of the image diagonal, from 1 on pixels",
    )
    parser.add_argument(
        "--band", type=float, default=0.02, help="of the boundary IoU: a share of the image diagonal"
    )
    parser.add_argument("--classwise", action="store_true", help="also IoU of every class")
    args = parser.parse_args()
    run_tool(
        lambda: evaluate(
            MapOptions(
                tolerance=args.tolerance,
                band=args.band,
                classwise=args.classwise,
                **common_options(args),
            ),
            SEMANTIC_MAPS,
        )
    )


if __name__ == "__main__":
    main()
