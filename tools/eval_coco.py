"""Detection and instance segmentation: COCO's AP and AR of boxes and masks on the config's `coco_eval`.

accelerate launch tools/eval_coco.py CONFIG --checkpoint FILE [--boxes head|text] [--backend pycocotools|faster]

`--boxes text` reads the boxes from the model's answers instead: precision, recall, F1, and AP with the probabilities of
their numbers as scores.
The answers also go into a file in COCO's results format.
Sharded and resumable as the other evaluation tools: see tools/eval_refcoco.py.
"""

from __future__ import annotations

import argparse

from flmm_detseg.engine.evaluation.arguments import add_common_arguments, common_options
from flmm_detseg.engine.evaluation.dense import BOX_SOURCES, COCO_BOXES, BoxOptions
from flmm_detseg.engine.evaluation.evaluate import evaluate
from flmm_detseg.evaluation.coco_metric import BACKENDS
from flmm_detseg.utils.cli import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_arguments(parser)
    parser.add_argument(
        "--boxes", choices=BOX_SOURCES, default="head", help="detection head, or answers in words"
    )
    parser.add_argument("--max-new-tokens", type=int, default=1024, help="length of such an answer")
    parser.add_argument("--backend", choices=tuple(BACKENDS), default="pycocotools", help="who counts")
    parser.add_argument(
        "--annotation-file", help="COCO file with targets and areas (default: the data set's samples)"
    )
    parser.add_argument("--classwise", action="store_true", help="also AP of every class")
    args = parser.parse_args()
    run_tool(
        lambda: evaluate(
            BoxOptions(
                boxes=args.boxes,
                max_new_tokens=args.max_new_tokens,
                backend=args.backend,
                annotation_file=args.annotation_file,
                classwise=args.classwise,
                **common_options(args),
            ),
            COCO_BOXES,
        )
    )


if __name__ == "__main__":
    main()
