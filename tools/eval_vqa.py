"""Answers to questions: VQAv2 accuracy, exact match, ScienceQA, POPE, yes/no on the config's `vqa_eval`.

accelerate launch tools/eval_vqa.py CONFIG --checkpoint FILE [--questions FILE --images DIR]

FILE is JSONL with `question_id`, `image`, `text` and `answers` | `answer` | `label` (optionally `choices`,
`category`), or LLaVA conversations (.json). The answers go into a file in LLaVA's answer format.
Sharded and resumable as the other evaluation tools: see tools/eval_refcoco.py.
"""

from __future__ import annotations

import argparse

from flmm_detseg.engine.evaluation.answers import VQA, AnswerOptions
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
    args = parser.parse_args()
    run_tool(
        lambda: evaluate(
            AnswerOptions(
                questions=args.questions,
                images=args.images,
                metric=args.metric,
                max_new_tokens=args.max_new_tokens,
                **common_options(args),
            ),
            VQA,
        )
    )


if __name__ == "__main__":
    main()
