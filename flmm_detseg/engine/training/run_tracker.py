"""W&B, MLflow or trackio as a place where the curves and pictures of a run go, beside TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.visualization import BaseVisBackend

from flmm_detseg.engine.training.tracking_tools import TOOLS
from flmm_detseg.errors import ConfigError
from flmm_detseg.registry import VISBACKENDS


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
        self.project, self.run_name, self.options = project, run_name, dict(options or {})
        # Before the model is built: a run that nobody can watch should not take its first hour.
        self._tool = TOOLS[tool](tool)
        self._run: Any = None

    def _init_env(self) -> None:
        """What MMEngine calls before the first entry; the run starts with its config, see :meth:`add_config`."""
        self._start({})

    def _start(self, config: dict[str, Any]) -> Any:
        if self._run is None:
            folder = Path(self._save_dir or ".")
            self._run = self._tool.start(folder, self.project, self.run_name, config, self.options)
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
        self._start({})
        if values:
            self._tool.log_values(values, step)

    def add_image(self, name: str, image: np.ndarray, step: int = 0) -> None:
        """Stores a picture.

        Args:
            name: Of the series, such as ``phrase_0``.
            image: RGB uint8 ``[H, W, 3]``.
            step: Iteration.
        """
        self._start({})
        self._tool.log_picture(name, image, step)

    def close(self) -> None:
        """Ends the run, if one has begun."""
        if self._run is not None:
            self._tool.finish()
        self._run = None


def _is_number(value: Any) -> bool:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return value.ndim == 0
    return isinstance(value, (int, float, np.number))
