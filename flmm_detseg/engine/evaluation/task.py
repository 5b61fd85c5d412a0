"""What one kind of evaluation is; :mod:`flmm_detseg.engine.evaluation.evaluate` runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from mmengine.config import Config

from flmm_detseg.errors import ConfigError
from flmm_detseg.structures import Sample


@dataclass(frozen=True)
class EvaluationOptions:
    """Arguments that every evaluation has; None leaves a choice to the config. Tasks add their own.

    Attributes:
        config: Config file.
        checkpoint: Trained parts; None takes ``load_from`` of the config.
        untrained: Evaluate heads as they were initialised when there is no checkpoint.
        splits: Names (or splits) of the config's data sets to evaluate; empty: all.
        batch_size: Samples read and recorded per step (what a kill can lose); not what one model call holds.
        num_threads: CPU threads of each process; figures are equal for equal numbers.
        num_workers: Reading processes per evaluating process.
        limit: Only the first samples of each data set.
        work_dir: Folder of records and results; None: ``work_dirs/<config name>/eval``.
        out: Results file; None: ``<work_dir>/<task>.json``.
        fresh: Do not resume; evaluate everything again.
        cfg_options: ``key=value`` overrides of the config, as for training.
        allow_other_lmm: Accept a checkpoint that was trained on another LMM.
    """

    config: str
    checkpoint: str | None = None
    untrained: bool = False
    splits: tuple[str, ...] = ()
    batch_size: int = 16
    num_threads: int = 1
    num_workers: int = 0
    limit: int | None = None
    work_dir: str | None = None
    out: str | None = None
    fresh: bool = False
    cfg_options: tuple[str, ...] = ()
    allow_other_lmm: bool = False

    def __post_init__(self) -> None:
        for key in ("batch_size", "num_threads", "limit"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"`{key}` is {value}; it must be at least 1")


Options = TypeVar("Options", bound=EvaluationOptions)


class Task(ABC, Generic[Options]):
    """A kind of evaluation: what the model is asked, and which figures are computed from the answers.

    Attributes:
        name: Names the results file.
        config_key: Key of the config that holds ``dict(name=dataset config, ...)``.
    """

    name: str
    config_key: str

    def check(self, model: Any, dataset: Any, options: Options) -> None:
        """Refuses data that do not fit the model, before it is asked; nothing to compare unless a task says so."""

    def check_data(self, dataset: Any, options: Options) -> None:
        """Refuses data and files that no figures can be made of, before a model is loaded; by default none."""

    @abstractmethod
    def facts(
        self, model: Any, samples: list[Sample], dataset: Any, options: Options
    ) -> list[list[dict[str, Any]]]:
        """Asks the model; per sample a list of plain facts that later figures are made of.

        Args:
            model: The model, in eval mode.
            samples: Of one image.
            dataset: They are from.
            options: What to evaluate and how.

        Returns:
            Per sample its entries, JSON-ready.
        """

    @abstractmethod
    def figures(
        self, records: Sequence[Mapping[str, Any]], dataset: Any, options: Options
    ) -> dict[str, float]:
        """Figures of a data set's facts."""

    def settings(self, options: Options) -> dict[str, Any]:
        """What the facts depend on, of the options."""
        return {}

    def conventions(self, options: Options) -> dict[str, Any]:
        """What the figures depend on, for the results file."""
        return {}

    def entries(self, config: Config, options: Options) -> Mapping[str, Mapping[str, Any]]:
        """Configs of the data sets by name."""
        listed = config.get(self.config_key)
        if not listed:
            raise ConfigError(
                f"{options.config}: it has no `{self.config_key}`. "
                f"Add {self.config_key} = dict(NAME=dict(type=...), ...)."
            )
        return listed

    def overrides(self, options: Options) -> dict[str, Any]:
        """Arguments of the data sets that the options set; None where they do not."""
        return {}

    def asked(self, dataset: Any, options: Options) -> Any:
        """What is evaluated of a config's data set; the data set itself unless a task makes other records of it."""
        return dataset

    def protocol(self, name: str, dataset: Any, options: Options) -> dict[str, Any]:
        """How a data set is evaluated, for the fingerprint and the results file."""
        return {}

    def shown(self, dataset: Any, options: Options) -> Any:
        """What the model is shown of a data set."""
        return dataset

    def file_stem(self, options: Options) -> str:
        """Name of the results file."""
        return self.name

    def line(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Those of a data set's figures that the command's last line shows; all are in the results file."""
        return dict(figures)

    def export(
        self, records: Sequence[Mapping[str, Any]], dataset: Any, stem: Path, options: Options
    ) -> list[Path]:
        """Writes the answers in a public format; returns the files (``stem`` with an ending)."""
        return []

    def summary(self, metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """Figures over all data sets."""
        return {}
