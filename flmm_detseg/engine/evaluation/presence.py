"""Evaluation of presence: is there what a phrase names, or what a question asks to be shown?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flmm_detseg.datasets.mask_answers import REASONING
from flmm_detseg.datasets.tinyworld.questions import presence_question
from flmm_detseg.engine.evaluation.task import EvaluationOptions, Task
from flmm_detseg.errors import ConfigError
from flmm_detseg.evaluation.presence import answer_presence_record, presence_figures, presence_records
from flmm_detseg.heads import head_of, require_head
from flmm_detseg.structures import Sample

# Room for "yes" or "no" and what may come before it.
_ANSWER_TOKENS = 4
# Longest answer with masks.
_MASKS_TOKENS = 128
# What is asked about phrases unless somebody says otherwise.
QUESTION = "Is there {phrase} in the image? Answer yes or no."
# Names of `--question` beside templates.
TINYWORLD, NOTHING = "tinyworld", "none"


@dataclass(frozen=True)
class PresenceOptions(EvaluationOptions):
    """Arguments of the evaluation, beside the common ones.

    Attributes:
        question: What the LMM itself is asked about each phrase, as a baseline: a text with ``{phrase}``, or
            ``"tinyworld"`` (the tiny LLaVA's own wording), or ``"none"``; None: :data:`QUESTION`. Of questions that
            are answered with masks the baseline is whether the answer has one (unless ``"none"``).
        min_presence: Threshold; None: the one that was fitted with the head.
    """

    question: str | None = None
    min_presence: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.question not in (None, TINYWORLD, NOTHING) and "{phrase}" not in self.question:
            raise ConfigError(
                f"`question` is {self.question!r}; give a text with {{phrase}}, or {TINYWORLD} or {NOTHING}"
            )
        if self.min_presence is not None and not 0 <= self.min_presence <= 1:
            raise ConfigError(f"`min_presence` is {self.min_presence}; it is a probability, within [0, 1]")


class PresenceTask(Task[PresenceOptions]):
    """Presence of phrases, from ``model.predict``, and of what questions ask for, from ``model.answers_with_masks``;
    and what the LMM itself answers.
    """

    name, config_key = "presence", "presence_eval"

    def __init__(self) -> None:
        self._thresholds: dict[str, float] = {}

    def check(self, model: Any, dataset: Any, options: PresenceOptions) -> None:
        """Refuses models whose head for the data has no presence head, or a threshold that was never fitted."""
        task = _road(dataset)
        head = head_of(model.heads, task)
        threshold = None if head is None else head.presence_threshold
        if threshold is None:
            raise ConfigError(
                f"the model's {task} head has no presence head; use a config that has one (tiny/presence, "
                "tiny/seg_token)"
            )
        if math.isnan(threshold) and options.min_presence is None:
            raise ConfigError(
                f"the presence head of the model's {task} head was never calibrated, so it has no threshold: train it "
                "with a PresenceCalibrationHook, or give --min-presence"
            )
        if task == REASONING and options.question not in (None, NOTHING):
            raise ConfigError(
                "`question` is for phrases; the questions of this data are answered with masks, and that answer is "
                "what presence is compared with: leave it out"
            )
        self._thresholds[task] = threshold

    def facts(
        self, model: Any, samples: list[Sample], dataset: Any, options: PresenceOptions
    ) -> list[list[dict[str, Any]]]:
        """Presence, mask scores and answers, one entry per phrase, or per question."""
        if samples[0].task == REASONING:
            return [[record] for record in _answer_records(model, samples, options)]
        predictions = model.predict(samples)
        return [
            presence_records(sample, prediction, _answers(model, sample, options.question or QUESTION))
            for sample, prediction in zip(samples, predictions, strict=True)
        ]

    def figures(
        self, records: Sequence[Mapping[str, Any]], dataset: Any, options: PresenceOptions
    ) -> dict[str, float]:
        """Figures at the threshold."""
        stored = self._thresholds.get(_road(dataset), math.nan)
        return presence_figures(records, stored if options.min_presence is None else options.min_presence)

    def settings(self, options: PresenceOptions) -> dict[str, Any]:
        """Other questions are other facts."""
        return {"question": options.question}

    def conventions(self, options: PresenceOptions) -> dict[str, Any]:
        """Where the threshold is from."""
        return {"threshold": "stored" if options.min_presence is None else options.min_presence}


def _road(dataset: Any) -> str:
    """The task of a data set's samples: ``"reasoning"``, or ``"phrase"``."""
    return REASONING if dataset is not None and len(dataset) and dataset[0].task == REASONING else "phrase"


def _answer_records(model: Any, samples: Sequence[Sample], options: PresenceOptions) -> list[dict[str, Any]]:
    """What is known of questions once the model has answered them; it does not see the reference answers."""
    head = require_head(model.heads, REASONING)
    there = [bool(head.is_there(sample).item()) for sample in samples]
    asked = [replace(sample, text="", phrases=(), masks=None, dense=None) for sample in samples]
    answers = model.answers_with_masks(asked, max_new_tokens=_MASKS_TOKENS)
    return [
        answer_presence_record(sample, is_there, answer, with_answer=options.question != NOTHING)
        for sample, is_there, answer in zip(samples, there, answers, strict=True)
    ]


def _answers(model: Any, sample: Sample, question: str) -> list[str] | None:
    """What the untouched LMM answers about each phrase."""
    if question == NOTHING:
        return None
    answers = []
    for k in range(len(sample.phrases)):
        text = sample.phrase_text(k)
        asked = presence_question(text) if question == TINYWORLD else question.replace("{phrase}", text)
        alone = replace(sample, text="", phrases=(), masks=None, prompt=asked, task="vqa", meta={})
        with model.lmm.base_mode():
            answers.append(model.lmm.generate(alone, max_new_tokens=_ANSWER_TOKENS))
    return answers


PRESENCE = PresenceTask()
