"""Evaluation of answers with masks: reasoning and generalised referring segmentation, grounded captions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from flmm_detseg.datasets.mask_answers import REASONING
from flmm_detseg.datasets.readers import readers_of
from flmm_detseg.datasets.seg_answers import SegAnswers
from flmm_detseg.engine.evaluation.task import EvaluationOptions, Task
from flmm_detseg.errors import ConfigError
from flmm_detseg.evaluation import gcg_figures, mask_answer_record, reason_figures
from flmm_detseg.evaluation.no_target import judge, no_target_rule
from flmm_detseg.heads import require_head
from flmm_detseg.models.presence import MinPresence, presence_limit
from flmm_detseg.structures import Sample
from flmm_detseg.utils.whole_files import dump_json, write_text


@dataclass(frozen=True)
class MaskAnswerOptions(EvaluationOptions):
    """Arguments of the evaluations of answers with masks, beside the common ones.

    Attributes:
        teacher_forced: The model reads the reference answer and its ``[SEG]`` instead of answering, as LISA validates.
            Records that nothing fits are left out: their answers have nothing to read.
        max_new_tokens: Length of an answer.
        convention: What an answer is worth where nothing fits, see :mod:`flmm_detseg.evaluation.no_target`; None where
            figures do not depend on it (grounded captions).
        sentences: Of readers of RefCOCO's files: ``"first"`` | ``"all"``; None: the config's.
        min_presence: Least presence of what is asked for, see :meth:`Grounder.ask
            <flmm_detseg.inference.grounder.Grounder.ask>`; below it an answer counts as one without masks.
    """

    teacher_forced: bool = False
    max_new_tokens: int = 128
    convention: str | None = "lisa"
    sentences: str | None = None
    min_presence: MinPresence = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.convention is not None:
            no_target_rule(self.convention)
        if self.max_new_tokens < 1:
            raise ConfigError(f"`max_new_tokens` is {self.max_new_tokens}; it must be at least 1")


class MaskAnswerTask(Task[MaskAnswerOptions]):
    """Masks of the ``[SEG]`` in answers, from ``model.answers_with_masks``.

    Args:
        name: Names the results file, and the config's key with ``_eval``.
        figures: Figures from the records.
    """

    def __init__(
        self, name: str, figures: Callable[[Sequence[Mapping[str, Any]], MaskAnswerOptions], dict[str, float]]
    ) -> None:
        self.name, self.config_key, self._figures = name, f"{name}_eval", figures

    def protocol(self, name: str, dataset: Any, options: MaskAnswerOptions) -> dict[str, Any]:
        """Refuses targets that the reference answer leaves out."""
        for reader in readers_of(dataset):
            if share := getattr(reader, "text_share", 0):
                raise ConfigError(
                    f"data set {name!r}: `text_share` is {share}; evaluation needs 0, since answers in words alone "
                    "have no mask for targets that are there"
                )
        return self.settings(options)

    def check(self, model: Any, dataset: Any, options: MaskAnswerOptions) -> None:
        """The model must have a head that reads ``[SEG]``, with a presence head for ``min_presence``."""
        require_head(model.heads, REASONING)
        presence_limit(model, options.min_presence, REASONING)

    def facts(
        self, model: Any, samples: list[Sample], dataset: Any, options: MaskAnswerOptions
    ) -> list[list[dict[str, Any]]]:
        """One record per query; none where a record without a target would be read teacher-forced.

        Args:
            model: Answers without seeing the reference answer, its phrases or masks.
            samples: Queries about one image.
            dataset: They are from.
            options: Of the evaluation.

        Returns:
            Per sample its record of :func:`~flmm_detseg.evaluation.mask_answer_records.mask_answer_record`.

        Raises:
            ConfigError: A record is not a query whose answer has masks.
        """
        for sample in samples:
            if sample.task != REASONING or sample.prompt is None:
                raise ConfigError(
                    f"{sample.record_id}: task {sample.task!r} with prompt {sample.prompt!r}; answers with masks are "
                    f"measured on records of task {REASONING!r} with a query as prompt"
                )
        limit = presence_limit(model, options.min_presence, REASONING)
        if options.teacher_forced:
            read = [sample for sample in samples if sample.phrases]
            with torch.no_grad():
                predictions = iter(model.results(REASONING, read) if read else [])
            return [
                [mask_answer_record(sample, sample.text, next(predictions), min_presence=limit)]
                if sample.phrases
                else []
                for sample in samples
            ]
        asked = [replace(sample, text="", phrases=(), masks=None, dense=None) for sample in samples]
        with torch.no_grad():
            answers = model.answers_with_masks(asked, max_new_tokens=options.max_new_tokens)
        return [
            [mask_answer_record(sample, answer.text, answer.prediction, answer.names, min_presence=limit)]
            for sample, answer in zip(samples, answers, strict=True)
        ]

    def figures(
        self, records: Sequence[Mapping[str, Any]], dataset: Any, options: MaskAnswerOptions
    ) -> dict[str, float]:
        """Figures of the task's metric."""
        return self._figures(records, options)

    def overrides(self, options: MaskAnswerOptions) -> dict[str, Any]:
        """Argument of readers of RefCOCO's files."""
        return {"sentences": options.sentences}

    def settings(self, options: MaskAnswerOptions) -> dict[str, Any]:
        """How answers are made."""
        withheld = {} if options.min_presence is None else {"min_presence": options.min_presence}
        if options.teacher_forced:
            return {"teacher_forced": True, **withheld}
        return {"teacher_forced": False, "max_new_tokens": options.max_new_tokens, **withheld}

    def conventions(self, options: MaskAnswerOptions) -> dict[str, Any]:
        """What an answer is worth where nothing fits, and whether the model answered itself."""
        return {"convention": options.convention, "teacher_forced": options.teacher_forced}

    def line(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Without the groups, of which there may be a hundred figures."""
        return {name: figure for name, figure in figures.items() if "/" not in name}

    def worth(self, record: Mapping[str, Any], options: MaskAnswerOptions) -> dict[str, Any]:
        """What a single answer is worth, for the export."""
        assert options.convention is not None
        return {"iou": round(judge(record, no_target_rule(options.convention)).iou, 6)}

    def file_stem(self, options: MaskAnswerOptions) -> str:
        """What was read teacher-forced has a file of its own."""
        return f"{self.name}-teacher-forced" if options.teacher_forced else self.name

    def export(
        self, records: Sequence[Mapping[str, Any]], dataset: Any, stem: Path, options: MaskAnswerOptions
    ) -> list[Path]:
        """Queries, answers and what each is worth, one JSON object a line."""
        lines = []
        for record in records:
            line = {
                "record_id": record["record_id"],
                "question": record["question"],
                "answer": record["answer"],
                "expected": record["expected"],
                "num_masks": record["num_masks"],
                "num_targets": record["num_targets"],
                **self.worth(record, options),
            }
            lines.append(dump_json(line) + "\n")
        ending = "teacher-forced.jsonl" if options.teacher_forced else "answers.jsonl"
        file = stem.with_name(f"{stem.name}-{ending}")
        write_text(file, "".join(lines))
        return [file]


class ExpressionTask(MaskAnswerTask):
    """RefCOCO's expressions as queries: one answer each, whatever the reader's layout."""

    def __init__(self) -> None:
        super().__init__("refcoco", _reason)
        self.name = "refcoco-generated"

    def asked(self, dataset: Any, options: MaskAnswerOptions) -> Any:
        """The phrases of the reader as queries, always in the same words."""
        return SegAnswers(dataset, wordings="first")


class CaptionTask(MaskAnswerTask):
    """Captions with masks: every mask is compared with every target, and no convention is needed."""

    def __init__(self) -> None:
        super().__init__("gcg", lambda records, options: gcg_figures(records))

    def conventions(self, options: MaskAnswerOptions) -> dict[str, Any]:
        """Whether the model answered itself."""
        return {"teacher_forced": options.teacher_forced}

    def worth(self, record: Mapping[str, Any], options: MaskAnswerOptions) -> dict[str, Any]:
        """The phrases that its masks are of, and those that were expected."""
        return {"names": record["names"], "target_names": record["target_names"]}


def _reason(records: Sequence[Mapping[str, Any]], options: MaskAnswerOptions) -> dict[str, float]:
    assert options.convention is not None
    return reason_figures(records, convention=options.convention)


REASON = MaskAnswerTask("reason", _reason)
REFCOCO_ANSWERS = ExpressionTask()
GREFCOCO = MaskAnswerTask("grefcoco", _reason)
GCG = CaptionTask()
