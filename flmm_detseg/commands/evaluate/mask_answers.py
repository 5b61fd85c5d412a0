"""The evaluations of answers with masks: `flmm-detseg evaluate reason`, `grefcoco` and `gcg`."""

from __future__ import annotations

import argparse
from typing import Any

from flmm_detseg.commands.evaluate.arguments import add_common_arguments, common_options
from flmm_detseg.utils.choices import NO_TARGET_CONVENTIONS
from flmm_detseg.utils.cli import add_presence_argument, refuse_unread
from flmm_detseg.utils.configs import config_file

_PROCESSES = """
Runs go on where they stopped. Several processes:
`torchrun --nproc_per_node 2 -m flmm_detseg.cli evaluate {name} ...`; the figures are the same.
"""


class MaskAnswerPart:
    """One of them, with the arguments that its figures depend on.

    Args:
        name: Of the command and of its task.
        text: Its help; the first line is what lists of commands show.
        conventions: Whether an answer's worth depends on a convention for queries that nothing fits.
        sentences: Whether its readers take ``sentences``.
    """

    def __init__(self, name: str, text: str, *, conventions: bool = True, sentences: bool = False) -> None:
        self.name, self.conventions, self.sentences = name, conventions, sentences
        self.__doc__ = text.lstrip() + _PROCESSES.format(name=name)

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares the arguments of :meth:`run`."""
        add_common_arguments(parser)
        parser.add_argument(
            "--teacher-forced", action="store_true", help="read the reference answers instead of answering"
        )
        parser.add_argument("--max-new-tokens", type=int, help="length of an answer (default 128)")
        add_presence_argument(parser)
        if self.conventions:
            parser.add_argument(
                "--convention",
                choices=NO_TARGET_CONVENTIONS,
                default="lisa",
                help="whose rule says what an answer is worth where nothing fits the query",
            )
        if self.sentences:
            parser.add_argument(
                "--sentences", choices=("first", "all"), help="which sentences (default: the config's)"
            )

    def run(self, args: argparse.Namespace) -> dict[str, Any] | None:
        """Evaluates.

        Args:
            args: As declared by :meth:`add_arguments`.

        Returns:
            Figures for the last line; None in every process but the first.

        Raises:
            FlmmError: Whatever the user can mend.
        """
        if args.teacher_forced:
            refuse_unread(
                {"--max-new-tokens": args.max_new_tokens},
                "with --teacher-forced no answer is written; leave it out",
            )
        config_file(args.config)
        from flmm_detseg.engine.evaluation.evaluate import evaluate
        from flmm_detseg.engine.evaluation.mask_answers import GCG, GREFCOCO, REASON, MaskAnswerOptions

        options = MaskAnswerOptions(
            teacher_forced=args.teacher_forced,
            max_new_tokens=128 if args.max_new_tokens is None else args.max_new_tokens,
            convention=args.convention if self.conventions else None,
            min_presence=args.min_presence,
            sentences=args.sentences if self.sentences else None,
            **common_options(args),
        )
        tasks = {task.name: task for task in (REASON, GREFCOCO, GCG)}
        return evaluate(options, tasks[self.name])


reason = MaskAnswerPart(
    "reason",
    """
Reasoning segmentation: gIoU, cIoU, N-acc, T-acc and `[SEG]` counts of the model's own answers, on `reason_eval`.

flmm-detseg evaluate reason CONFIG --checkpoint FILE [--convention lisa|gsva|rela|vision_reasoner] [--teacher-forced]

The model is asked each query and answers freely. `--teacher-forced` reads the reference answer instead, as LISA
validates: missing and superfluous masks cannot show then. All figures have 95 % intervals; those of groups of queries
are in the results file, not in the last line.
""",
)
grefcoco = MaskAnswerPart(
    "grefcoco",
    """
Generalised referring segmentation: as `flmm-detseg evaluate reason`, on the config's `grefcoco_eval`.

flmm-detseg evaluate grefcoco CONFIG --checkpoint FILE [--convention lisa|gsva|rela|vision_reasoner] [--teacher-forced]

Expressions name one object, several or none. `gsva` is how GSVA reports gRefCOCO, `rela` how GRES does.
""",
    sentences=True,
)
gcg = MaskAnswerPart(
    "gcg",
    """
Grounded conversation generation: AP50, mIoU and phrase recall of captions with masks, on the config's `gcg_eval`.

flmm-detseg evaluate gcg CONFIG --checkpoint FILE [--teacher-forced]

AP50_unranked gives all masks one score, as GLaMM does; AP50 takes the masks' own. Phrases are alike from a token F1 of
0.5 on, not by BERT's features as GLaMM compares them. METEOR and CIDEr of the captions are not computed.
""",
    conventions=False,
)
