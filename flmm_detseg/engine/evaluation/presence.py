"""Evaluation of presence: is there what a phrase names?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flmm_detseg.datasets.tinyworld.questions import presence_question
from flmm_detseg.engine.evaluation.task import EvaluationOptions, Task
from flmm_detseg.errors import ConfigError
from flmm_detseg.evaluation.presence import presence_figures, presence_records
from flmm_detseg.heads import head_of
from flmm_detseg.structures import Sample

# Room for "yes" or "no" and what may come before it.
_ANSWER_TOKENS = 4
# Names of `--question` beside templates.
TINYWORLD, NOTHING = "tinyworld", "none"


@dataclass(frozen=True)
class PresenceOptions(EvaluationOptions):
    """Arguments of the evaluation, beside the common ones.

    Attributes:
        question: What the LMM itself is asked about each phrase, as a baseline: a text with ``{phrase}``, or
            ``"tinyworld"`` (the tiny LLaVA's own wording), or ``"none"``.
        min_presence: Threshold; None: the one that was fitted with the head.
    """

    question: str = "Is there {phrase} in the image? Answer yes or no."
    min_presence: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.question not in (TINYWORLD, NOTHING) and "{phrase}" not in self.question:
            raise ConfigError(
                f"`question` is {self.question!r}; give a text with {{phrase}}, or {TINYWORLD} or {NOTHING}"
            )
        if self.min_presence is not None and not 0 <= self.min_presence <= 1:
            raise ConfigError(f"`min_presence` is {self.min_presence}; it is a probability, within [0, 1]")


class PresenceTask(Task[PresenceOptions]):
    """Presence of phrases, from ``model.predict``, and what the LMM itself answers."""

    name, config_key = "presence", "presence_eval"

    def __init__(self) -> None:
        self._threshold: float | None = None

    def check(self, model: Any, dataset: Any, options: PresenceOptions) -> None:
        """Refuses models without a presence head."""
        head = head_of(model.heads, "phrase")
        if head is None or head.presence_threshold is None:
            raise ConfigError(
                "the model's phrase head has no presence head; use a config that has one (tiny/presence)"
            )
        self._threshold = head.presence_threshold

    def facts(
        self, model: Any, samples: list[Sample], dataset: Any, options: PresenceOptions
    ) -> list[list[dict[str, Any]]]:
        """Presence, mask scores and answers, one entry per phrase."""
        predictions = model.predict(samples)
        return [
            presence_records(sample, prediction, _answers(model, sample, options.question))
            for sample, prediction in zip(samples, predictions, strict=True)
        ]

    def figures(
        self, records: Sequence[Mapping[str, Any]], dataset: Any, options: PresenceOptions
    ) -> dict[str, float]:
        """Figures at the threshold."""
        threshold = self._threshold if options.min_presence is None else options.min_presence
        assert threshold is not None  # `check` came first
        return presence_figures(records, threshold)

    def settings(self, options: PresenceOptions) -> dict[str, Any]:
        """Other questions are other facts."""
        return {"question": options.question}

    def conventions(self, options: PresenceOptions) -> dict[str, Any]:
        """Where the threshold is from."""
        return {"threshold": "stored" if options.min_presence is None else options.min_presence}


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
