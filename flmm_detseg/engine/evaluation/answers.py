"""Evaluation of answers to questions: accuracy, and what the adapted model forgot."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from flmm_detseg.datasets.llava_instruct import LLaVAInstructDataset
from flmm_detseg.datasets.questions import QuestionDataset
from flmm_detseg.engine.evaluation.task import EvaluationOptions, Task
from flmm_detseg.errors import ConfigError
from flmm_detseg.evaluation import answer_record, forgetting_figures, forgetting_record, vqa_figures
from flmm_detseg.evaluation.forgetting import summarise
from flmm_detseg.evaluation.vqa import VQA_METRICS
from flmm_detseg.structures import Sample
from flmm_detseg.utils.configs import config_name
from flmm_detseg.utils.whole_files import dump_json, write_text


@dataclass(frozen=True)
class AnswerOptions(EvaluationOptions):
    """Arguments of the evaluations of answers, beside the common ones.

    Attributes:
        questions: Question file instead of the config's data sets: ``.jsonl`` of
            :class:`~flmm_detseg.datasets.QuestionDataset`, or ``.json`` of LLaVA conversations.
        images: Folder of its images.
        metric: One of :data:`~flmm_detseg.evaluation.vqa.VQA_METRICS` for all questions; None: the data set's own, else
            by the question.
        max_new_tokens: Length of an answer.
        kl: Forgetting: also the KL divergence from the base model (a teacher-forced pass per question).
    """

    questions: str | None = None
    images: str | None = None
    metric: str | None = None
    max_new_tokens: int = 128
    kl: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.questions is None) != (self.images is None):
            raise ConfigError("`questions` and `images` belong together: give both or neither")
        if self.metric is not None and self.metric not in VQA_METRICS:
            raise ConfigError(f"`metric` is {self.metric!r}; allowed: {', '.join(VQA_METRICS)}")
        if self.max_new_tokens < 1:
            raise ConfigError(f"`max_new_tokens` is {self.max_new_tokens}; it must be at least 1")


class _AnswerTask(Task[AnswerOptions]):
    """What both evaluations of answers share: their questions."""

    config_key = "vqa_eval"

    def entries(self, config: Config, options: AnswerOptions) -> Mapping[str, Mapping[str, Any]]:
        """The question file, or the config's data sets."""
        if options.questions is None:
            return super().entries(config, options)
        file = Path(options.questions)
        reader = {"file": str(file), "image_dir": options.images}
        if file.suffix == ".json":
            return {file.stem: {"type": LLaVAInstructDataset, "turns": "all", **reader}}
        return {file.stem: {"type": QuestionDataset, **reader}}

    def settings(self, options: AnswerOptions) -> dict[str, Any]:
        """Metric and length of the answers."""
        return {"metric": options.metric, "max_new_tokens": options.max_new_tokens}

    def protocol(self, name: str, dataset: Any, options: AnswerOptions) -> dict[str, Any]:
        """Refuses metrics that nobody knows."""
        metric = _metric(dataset, options)
        if metric is not None and metric not in VQA_METRICS:
            raise ConfigError(f"data set {name!r}: `metric` is {metric!r}; allowed: {', '.join(VQA_METRICS)}")
        return {**self.settings(options), "metric": metric}


class VQATask(_AnswerTask):
    """Answers of ``model.answer``."""

    name = "vqa"

    def facts(
        self, model: Any, samples: list[Sample], dataset: Any, options: AnswerOptions
    ) -> list[list[dict[str, Any]]]:
        """One answer per question, with its score."""
        return [[_answer(model, sample, dataset, options)] for sample in samples]

    def figures(
        self, records: Sequence[Mapping[str, Any]], dataset: Any, options: AnswerOptions
    ) -> dict[str, float]:
        """Figures of :func:`~flmm_detseg.evaluation.vqa_figures`."""
        return vqa_figures(records)

    def export(
        self, records: Sequence[Mapping[str, Any]], dataset: Any, stem: Path, options: AnswerOptions
    ) -> list[Path]:
        """LLaVA's answer format, one JSON object a line."""
        lines = []
        for record in records:
            digest = hashlib.sha256(f"{record['record_id']}\0{record['answer']}".encode()).hexdigest()
            line = {
                "question_id": record["question_id"],
                "prompt": record["question"],
                "text": record["answer"],
                "answer_id": digest[:22],
                "model_id": config_name(options.config),
                "metadata": {"score": record["score"]},
            }
            lines.append(dump_json(line) + "\n")
        file = stem.with_name(f"{stem.name}-answers.jsonl")
        write_text(file, "".join(lines))
        return [file]


class ForgettingTask(_AnswerTask):
    """Answers of the untouched and of the adapted model to the same questions."""

    name = "forgetting"

    def facts(
        self, model: Any, samples: list[Sample], dataset: Any, options: AnswerOptions
    ) -> list[list[dict[str, Any]]]:
        """Both answers side by side, one entry per question.

        Args:
            model: The adapted model; the untouched one is it without its adapters.
            samples: Questions.
            dataset: Where they come from.
            options: Of the evaluation.

        Returns:
            Per question a list of one entry: both answers, and the divergence in nats where it was asked for.

        Raises:
            ConfigError: There is nothing to compare with: the model was fully fine-tuned, or only parts of the LMM can
                read a question (regions, modalities with a projector of their own).
        """
        model.retention.require_base("forgetting")
        if (unread := next(filter(model.lmm.needs_parts, samples), None)) is not None:
            raise ConfigError(
                f"{unread.record_id} shows what only parts of the LMM read (regions, or a modality with a projector of "
                "its own): there is no answer of the untouched LMM to compare with; leave such samples out"
            )
        adapted = [_answer(model, sample, dataset, options) for sample in samples]
        with model.lmm.base_mode():
            base = [_answer(model, sample, dataset, options) for sample in samples]
        divergences = model.answer_kl(samples) if options.kl else [None] * len(samples)
        return [
            [forgetting_record(before, after, kl)]
            for before, after, kl in zip(base, adapted, divergences, strict=True)
        ]

    def figures(
        self, records: Sequence[Mapping[str, Any]], dataset: Any, options: AnswerOptions
    ) -> dict[str, float]:
        """Figures of :func:`~flmm_detseg.evaluation.forgetting_figures`."""
        return forgetting_figures(records)

    def settings(self, options: AnswerOptions) -> dict[str, Any]:
        """Also whether divergences are there."""
        return {**super().settings(options), "kl": options.kl}

    def summary(self, metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """Mean and worst forgetting over the data sets."""
        return summarise(metrics)


def _metric(dataset: Any, options: AnswerOptions) -> str | None:
    """How all answers to a data set's questions are scored; None: by the question."""
    return options.metric or getattr(dataset, "metric", None)


def _answer(model: Any, sample: Sample, dataset: Any, options: AnswerOptions) -> dict[str, Any]:
    with torch.no_grad():
        answer = model.answer(sample, max_new_tokens=options.max_new_tokens)
    record = answer_record(
        sample.record_id,
        sample.prompt or "",
        answer,
        sample.meta.get("references", [sample.text]),
        metric=_metric(dataset, options),
        choices=sample.meta.get("choices", ()),
        kind=sample.meta.get("kind"),
    )
    return {**record, "question_id": sample.meta.get("question_id", sample.record_id)}


VQA = VQATask()
FORGETTING = ForgettingTask()
