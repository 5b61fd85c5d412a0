"""W&B, MLflow or trackio as a place where the curves and pictures of a run go, beside TensorBoard."""

from __future__ import annotations

import importlib
import json
import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.visualization import BaseVisBackend

from flmm_detseg.errors import ConfigError, MissingDependencyError
from flmm_detseg.registry import VISBACKENDS

TOOLS = ("wandb", "mlflow", "trackio")


@VISBACKENDS.register_module()
class RunTracker(BaseVisBackend):
    """Curves at their iterations, the pictures of :class:`~flmm_detseg.engine.VisualizationHook`, and the config.

    MMEngine's own backends count calls in place of iterations (W&B), or cannot store a picture (MLflow 3). Where a run
    is kept, who may see it and whether anything leaves the machine are the tool's own settings and environment
    variables (``WANDB_MODE=offline``, ``MLFLOW_TRACKING_URI``, ``TRACKIO_DIR``).

    Args:
        tool: ``"wandb"``, ``"mlflow"`` or ``"trackio"``; its package is installed apart.
        save_dir: Folder for what the tool keeps locally; MMEngine's visualizer gives its own.
        project: Under which name runs are collected (MLflow: the experiment).
        run_name: None: the tool makes one.
        options: Further arguments of ``wandb.init``, ``trackio.init`` or ``mlflow.start_run``, for example
            ``dict(id="...", resume="allow")``.

    Raises:
        ConfigError: The tool is none of these.
        MissingDependencyError: Its package is not installed.

    Example:
        A line of a config, after ``read_base``:

        >>> visualizer["vis_backends"].append(dict(type="RunTracker", tool="trackio"))
    """

    def __init__(
        self,
        tool: str,
        save_dir: str | None = None,
        project: str = "flmm_detseg",
        run_name: str | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(save_dir)
        if tool not in TOOLS:
            raise ConfigError(f"visualizer: RunTracker(tool={tool!r}) is unknown; known: {', '.join(TOOLS)}")
        self.tool = tool
        self.project, self.run_name, self.options = project, run_name, dict(options or {})
        # Before the model is built: a run that nobody can watch should not take its first hour.
        self._module = _load(tool)
        self._run: Any = None

    def _init_env(self) -> None:
        """What MMEngine calls before the first entry; the run starts with its config, see :meth:`add_config`."""
        self._start({})

    def _start(self, config: dict[str, Any]) -> Any:
        if self._run is not None:
            return self._run
        folder = self._save_dir or "."
        if self.tool != "trackio":
            Path(folder).mkdir(parents=True, exist_ok=True)
        if self.tool == "wandb":
            given = {"dir": folder, **self.options}
            self._run = self._module.init(project=self.project, name=self.run_name, config=config, **given)
        elif self.tool == "trackio":
            given = {"embed": False, **self.options}
            self._run = self._module.init(project=self.project, name=self.run_name, config=config, **given)
        else:
            if not os.environ.get("MLFLOW_TRACKING_URI"):
                # MLflow 3 refuses its former default, a folder of files.
                self._module.set_tracking_uri(f"sqlite:///{Path(folder).resolve()}/mlflow.db")
                if self._module.get_experiment_by_name(self.project) is None:
                    # Its default for pictures is ./mlruns, wherever the run was started.
                    pictures = (Path(folder).resolve() / "mlflow").as_uri()
                    self._module.create_experiment(self.project, artifact_location=pictures)
            self._module.set_experiment(self.project)
            self._run = self._module.start_run(run_name=self.run_name, **self.options)
            if config:
                self._module.log_dict(config, "config.json")
        return self._run

    @property
    def experiment(self) -> Any:
        """The tool's run."""
        return self._start({})

    def add_config(self, config: Config) -> None:
        """Starts the run; its config is stored with classes by their names, without a file's own helpers (``_name``).

        Args:
            config: Of the training.
        """
        # Their values are in other keys; trackio keeps such names for itself.
        public = {name: value for name, value in config.to_dict().items() if not name.startswith("_")}
        self._start(json.loads(json.dumps(public, default=str)))

    def add_scalar(self, name: str, value: float | torch.Tensor, step: int = 0) -> None:
        """Stores one value.

        Args:
            name: Of the curve.
            value: A number.
            step: Iteration.
        """
        self.add_scalars({name: value}, step)

    def add_scalars(self, scalar_dict: dict[str, Any], step: int = 0, file_path: str | None = None) -> None:
        """Stores the values of an iteration.

        Args:
            scalar_dict: Name to number; what is no number is left out, as in MMEngine's other backends.
            step: Iteration.
            file_path: Of MMEngine's local backend; not used.
        """
        del file_path
        values = {name: float(value) for name, value in scalar_dict.items() if _is_number(value)}
        run = self._start({})
        if not values:
            return
        if self.tool == "mlflow":
            # It takes no "P@0.5".
            named = {re.sub(r"[^\w\-. :/]", "_", name): value for name, value in values.items()}
            self._module.log_metrics(named, step=step)
        else:
            run.log(values, step=step)

    def add_image(self, name: str, image: np.ndarray, step: int = 0) -> None:
        """Stores a picture.

        Args:
            name: Of the series, such as ``phrase_0``.
            image: RGB uint8 ``[H, W, 3]``.
            step: Iteration.
        """
        run = self._start({})
        if self.tool == "mlflow":
            self._module.log_image(image, key=name, step=step, synchronous=True)
        else:
            run.log({name: self._module.Image(image, caption=name)}, step=step)

    def close(self) -> None:
        """Ends the run, if one has begun."""
        if self._run is None:
            return
        if self.tool == "mlflow":
            self._module.end_run()
        else:
            self._run.finish()
        self._run = None


def _is_number(value: Any) -> bool:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return value.ndim == 0
    return isinstance(value, (int, float, np.number))


def _load(tool: str) -> ModuleType:
    try:
        return importlib.import_module(tool)
    except ImportError as error:
        raise MissingDependencyError(
            f"visualizer: RunTracker(tool={tool!r}) needs the package {tool} ({error}); pip install {tool}, or leave "
            "the line out: TensorBoard has the same curves and pictures"
        ) from error
