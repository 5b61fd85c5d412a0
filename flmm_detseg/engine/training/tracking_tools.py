"""W&B, trackio and MLflow under one contract: where each keeps a run, and how it takes values and pictures."""

from __future__ import annotations

import importlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from flmm_detseg.errors import MissingDependencyError


class TrackingTool(ABC):
    """A tool that keeps runs, at most one of them at a time.

    Args:
        name: Its package, which is imported at once.

    Raises:
        MissingDependencyError: The package is not installed.
    """

    def __init__(self, name: str) -> None:
        self._module = _load(name)

    @abstractmethod
    def start(
        self,
        folder: Path,
        project: str,
        run_name: str | None,
        config: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> Any:
        """Begins the run.

        Args:
            folder: For what the tool keeps locally.
            project: Under which name runs are collected.
            run_name: None: the tool makes one.
            config: Of the training, JSON-ready; empty where there is none.
            options: Of the user, for the tool's own function.

        Returns:
            The tool's run.
        """

    @abstractmethod
    def log_values(self, values: Mapping[str, float], step: int) -> None:
        """Stores the values of an iteration.

        Args:
            values: Name to number.
            step: Iteration.
        """

    @abstractmethod
    def log_picture(self, name: str, image: np.ndarray, step: int) -> None:
        """Stores a picture.

        Args:
            name: Of the series.
            image: RGB uint8 ``[H, W, 3]``.
            step: Iteration.
        """

    @abstractmethod
    def finish(self) -> None:
        """Ends the run."""


class WandbTool(TrackingTool):
    """Weights & Biases."""

    def start(
        self,
        folder: Path,
        project: str,
        run_name: str | None,
        config: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> Any:
        """See the contract."""
        given = {**self._place(folder), **options}
        self._run = self._module.init(project=project, name=run_name, config=config, **given)
        return self._run

    def _place(self, folder: Path) -> dict[str, Any]:
        """What says where the run is kept."""
        folder.mkdir(parents=True, exist_ok=True)
        return {"dir": str(folder)}

    def log_values(self, values: Mapping[str, float], step: int) -> None:
        """See the contract."""
        self._run.log(values, step=step)

    def log_picture(self, name: str, image: np.ndarray, step: int) -> None:
        """See the contract."""
        self._run.log({name: self._module.Image(image, caption=name)}, step=step)

    def finish(self) -> None:
        """See the contract."""
        self._run.finish()


class TrackioTool(WandbTool):
    """Trackio: W&B's functions on a database of this machine, whose place is an environment variable."""

    def _place(self, folder: Path) -> dict[str, Any]:
        del folder  # TRACKIO_DIR says where
        return {"embed": False}


class MlflowTool(TrackingTool):
    """MLflow, whose run is a state of its module."""

    def start(
        self,
        folder: Path,
        project: str,
        run_name: str | None,
        config: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> Any:
        """See the contract."""
        folder.mkdir(parents=True, exist_ok=True)
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            # MLflow 3 refuses its former default, a folder of files.
            self._module.set_tracking_uri(f"sqlite:///{folder.resolve()}/mlflow.db")
            if self._module.get_experiment_by_name(project) is None:
                # Its default for pictures is ./mlruns, wherever the run was started.
                pictures = (folder.resolve() / "mlflow").as_uri()
                self._module.create_experiment(project, artifact_location=pictures)
        self._module.set_experiment(project)
        run = self._module.start_run(run_name=run_name, **options)
        if config:
            self._module.log_dict(config, "config.json")
        return run

    def log_values(self, values: Mapping[str, float], step: int) -> None:
        """See the contract."""
        # It takes no "P@0.5".
        named = {re.sub(r"[^\w\-. :/]", "_", name): value for name, value in values.items()}
        self._module.log_metrics(named, step=step)

    def log_picture(self, name: str, image: np.ndarray, step: int) -> None:
        """See the contract."""
        self._module.log_image(image, key=name, step=step, synchronous=True)

    def finish(self) -> None:
        """See the contract."""
        self._module.end_run()


TOOLS: dict[str, type[TrackingTool]] = {"wandb": WandbTool, "mlflow": MlflowTool, "trackio": TrackioTool}


def _load(tool: str) -> ModuleType:
    try:
        return importlib.import_module(tool)
    except ImportError as error:
        raise MissingDependencyError(
            f"visualizer: RunTracker(tool={tool!r}) needs the package {tool} ({error}); pip install {tool}, or leave "
            "the line out: TensorBoard has the same curves and pictures"
        ) from error
