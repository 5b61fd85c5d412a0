"""Forgetting: the adapted model's answers beside those of the untouched LMM, on the config's `vqa_eval`.

accelerate launch tools/eval_forgetting.py CONFIG --checkpoint FILE [--questions FILE --images DIR]

Per set: accuracy of both, the difference in points with its 95 % interval, share of identical answers, rate of
unwanted task tokens and boxes, KL divergence from the untouched LMM. Files as in tools/eval_vqa.py.
Sharded and resumable as the other evaluation tools: see tools/eval_refcoco.py.
"""

from __future__ import annotations

import argparse

from flmm_detseg.engine.evaluation.answers import FORGETTING, AnswerOptions
from flmm_detseg.engine.evaluation.arguments import (
    add_common_arguments,
    add_question_arguments,
    common_options,
)
from flmm_detseg.engine.evaluation.evaluate import evaluate
from flmm_detseg.utils.cli import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_arguments(parser)
    add_question_arguments(parser)
    parser.add_argument("--no-kl", action="store_true", help="leave the KL divergence out")
    args = parser.parse_args()
    run_tool(
        lambda: evaluate(
            AnswerOptions(
                questions=args.questions,
                images=args.images,
                metric=args.metric,
                max_new_tokens=args.max_new_tokens,
                kl=not args.no_kl,
                **common_options(args),
            ),
            FORGETTING,
        )
    )


if __name__ == "__main__":
    main()
