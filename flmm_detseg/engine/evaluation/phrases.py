"""Evaluation of masks of phrases: RefCOCO and panoptic narrative grounding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flmm_detseg.datasets import ShuffledPhrases
from flmm_detseg.engine.evaluation.task import EvaluationOptions, Task
from flmm_detseg.errors import ConfigError
from flmm_detseg.evaluation import phrase_records, png_figures, ref_seg_figures
from flmm_detseg.models.presence import MinPresence, presence_limit
from flmm_detseg.structures import Sample


@dataclass(frozen=True)
class PhraseOptions(EvaluationOptions):
    """Arguments of the phrase evaluations, beside the common ones.

    Attributes:
        sentences: RefCOCO: ``"first"`` | ``"all"``.
        layout: RefCOCO: ``"split"`` | ``"concat"``.
        phrases: ``"own"`` | ``"shuffled"`` (control: phrases of other images, in a results file of its own).
        empty: Convention for empty targets, see :class:`~flmm_detseg.evaluation.RefSegMetric`.
        threshold_sweep: Also report the best threshold and its cIoU.
        min_presence: Least presence of what is found, see :meth:`Grounder.ground
            <flmm_detseg.inference.grounder.Grounder.ground>`; below it the mask counts as empty.
    """

    sentences: str | None = None
    layout: str | None = None
    phrases: str = "own"
    empty: str = "skip"
    threshold_sweep: bool = False
    min_presence: MinPresence = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.phrases not in ("own", "shuffled"):
            raise ConfigError(f"`phrases` is {self.phrases!r}; allowed: own, shuffled")


class PhraseTask(Task[PhraseOptions]):
    """Masks of phrases, from ``model.predict``.

    Args:
        name: ``"refcoco"`` or ``"png"``.
        figures: Figures from per-phrase records.
    """

    def __init__(
        self, name: str, figures: Callable[[Sequence[Mapping[str, Any]], PhraseOptions], dict[str, float]]
    ) -> None:
        self.name, self.config_key, self._figures = name, f"{name}_eval", figures

    def check(self, model: Any, dataset: Any, options: PhraseOptions) -> None:
        """Refuses ``min_presence`` with models that have no presence head."""
        presence_limit(model, options.min_presence)

    def facts(
        self, model: Any, samples: list[Sample], dataset: Any, options: PhraseOptions
    ) -> list[list[dict[str, Any]]]:
        """Pixel counts, one entry per phrase."""
        predictions = model.predict(samples)
        limit = presence_limit(model, options.min_presence)
        return [
            phrase_records(sample, prediction, sweep=options.threshold_sweep, min_presence=limit)
            for sample, prediction in zip(samples, predictions, strict=True)
        ]

    def figures(
        self, records: Sequence[Mapping[str, Any]], dataset: Any, options: PhraseOptions
    ) -> dict[str, float]:
        """Figures of the task's metric."""
        return self._figures(records, options)

    def settings(self, options: PhraseOptions) -> dict[str, Any]:
        """Counts at more thresholds, or with fewer masks, are other facts."""
        return {"sweep": options.threshold_sweep, "min_presence": options.min_presence}

    def conventions(self, options: PhraseOptions) -> dict[str, Any]:
        """How empty targets are counted."""
        return {"empty_targets": options.empty}

    def overrides(self, options: PhraseOptions) -> dict[str, Any]:
        """Arguments of RefCOCO's reader."""
        return {"sentences": options.sentences, "layout": options.layout}

    def protocol(self, name: str, dataset: Any, options: PhraseOptions) -> dict[str, Any]:
        """``sentences`` and ``layout`` where the data set has them, ``phrases``."""
        protocol = {key: getattr(dataset, key) for key in ("sentences", "layout") if hasattr(dataset, key)}
        return {**protocol, "phrases": options.phrases}

    def shown(self, dataset: Any, options: PhraseOptions) -> Any:
        """The data set, or its phrases exchanged."""
        return ShuffledPhrases(dataset) if options.phrases == "shuffled" else dataset

    def file_stem(self, options: PhraseOptions) -> str:
        """The control has a file of its own."""
        return f"{self.name}-shuffled" if options.phrases == "shuffled" else self.name


REFCOCO = PhraseTask("refcoco", lambda records, options: ref_seg_figures(records, empty=options.empty))
PNG = PhraseTask("png", lambda records, options: png_figures(records))
