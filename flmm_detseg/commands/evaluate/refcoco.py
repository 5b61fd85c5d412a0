"""Referring segmentation: cIoU, gIoU, P@IoU and box accuracy on the data sets of the config's `refcoco_eval`.

flmm-detseg evaluate refcoco CONFIG --checkpoint FILE [--sentences first|all] [--mode split|concat]

`--generate` asks for each expression and measures the masks of the model's answer, as `flmm-detseg evaluate reason`
does; without it the model reads the expressions.

Plain `flmm-detseg` and `python` run one process. Several: `accelerate launch tools/eval_refcoco.py CONFIG ...`; on a
machine without GPUs `accelerate launch --multi_gpu --num_processes 2` (accelerate's own --cpu needs MPI) or `torchrun
--nproc_per_node 2`. The figures are the same.
"""

from __future__ import annotations

import argparse
from typing import Any

from flmm_detseg.commands.evaluate.arguments import add_common_arguments, add_phrases_argument, common_options
from flmm_detseg.errors import ConfigError
from flmm_detseg.utils.choices import EMPTY_CONVENTIONS
from flmm_detseg.utils.cli import add_presence_argument
from flmm_detseg.utils.configs import config_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
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
    add_presence_argument(parser)
    parser.add_argument("--threshold-sweep", action="store_true", help="also report the best mask threshold")
    parser.add_argument(
        "--generate", action="store_true", help="masks of the model's answers (of a head that reads `[SEG]`)"
    )


def run(args: argparse.Namespace) -> dict[str, Any] | None:
    """Evaluates.

    Args:
        args: As declared by :func:`add_arguments`.

    Returns:
        Figures for the last line; None in every process but the first.

    Raises:
        FlmmError: Whatever the user can mend.
    """
    config_file(args.config)
    if args.generate:
        _check_generate(args)
        from flmm_detseg.engine.evaluation.evaluate import evaluate
        from flmm_detseg.engine.evaluation.mask_answers import REFCOCO_ANSWERS, MaskAnswerOptions

        return evaluate(
            MaskAnswerOptions(
                sentences=args.sentences, min_presence=args.min_presence, **common_options(args)
            ),
            REFCOCO_ANSWERS,
        )
    from flmm_detseg.engine.evaluation.evaluate import evaluate
    from flmm_detseg.engine.evaluation.phrases import REFCOCO, PhraseOptions

    return evaluate(
        PhraseOptions(
            sentences=args.sentences,
            layout=args.mode,
            empty=args.empty,
            threshold_sweep=args.threshold_sweep,
            phrases=args.phrases,
            min_presence=args.min_presence,
            **common_options(args),
        ),
        REFCOCO,
    )


def _check_generate(args: argparse.Namespace) -> None:
    """Refuses what only reading the expressions can follow."""
    given = {
        "--mode": args.mode is not None,
        "--empty": args.empty != "skip",
        "--threshold-sweep": args.threshold_sweep,
        "--phrases": args.phrases != "own",
    }
    if refused := [option for option, is_given in given.items() if is_given]:
        raise ConfigError(f"--generate asks for each expression alone: leave {', '.join(refused)} out")
