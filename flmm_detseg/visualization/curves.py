"""Training curves out of the JSON log that every run writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flmm_detseg.errors import DataError


def read_scalars(work_dir: str | Path) -> dict[str, tuple[list[int], list[float]]]:
    """Reads the scalars of a run, resumed parts joined.

    Args:
        work_dir: Folder of the run; MMEngine writes ``*/vis_data/scalars.json`` below it, one per start.

    Returns:
        Per name (such as ``loss``): steps in order and their values. Where a resumed run repeats a step, the
        later start counts.

    Raises:
        DataError: No log, or a line that is not JSON (but a last one cut off by a kill); names file and line.
    """
    files = sorted(Path(work_dir).glob("*/vis_data/scalars.json"))
    if not files:
        raise DataError(f"{work_dir}: no training log (*/vis_data/scalars.json): has the training run?")
    values: dict[str, dict[int, float]] = {}
    for file in files:
        lines = file.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                if number == len(lines):
                    break
                raise DataError(f"{file}, line {number}: not JSON ({error}): the log is damaged") from error
            step = record.get("step", record.get("iter"))
            for name, value in record.items():
                if step is not None and name not in ("step", "iter") and isinstance(value, int | float):
                    values.setdefault(name, {})[int(step)] = float(value)
    return {name: (sorted(steps), [steps[s] for s in sorted(steps)]) for name, steps in values.items()}


def draw_loss_curves(
    runs: Mapping[str, str | Path], names: Sequence[str] | None = None, *, columns: int = 3
) -> np.ndarray:
    """Draws one small plot per loss, one line per run.

    Args:
        runs: Label -> work folder.
        names: Scalars to plot; None takes every name that contains ``loss`` and any run has.
        columns: Plots in a row.

    Returns:
        RGB uint8 picture.

    Raises:
        DataError: A run has no log, or no run has any of the names.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    logs = {label: read_scalars(folder) for label, folder in runs.items()}
    known = {name for log in logs.values() for name in log}
    chosen = (
        [n for n in names if n in known] if names is not None else sorted(n for n in known if "loss" in n)
    )
    if not chosen:
        raise DataError(
            f"no such scalar in {', '.join(map(str, runs.values()))}: {names or 'names with loss'}"
        )
    columns = min(columns, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.0 * rows), dpi=100, layout="constrained")
    for position, name in enumerate(chosen, start=1):
        axes = figure.add_subplot(rows, columns, position)
        for label, log in logs.items():
            if name in log:
                _plot(axes, *log[name], label)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("iteration", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        highest = max(max(log[name][1]) for log in logs.values() if name in log)
        axes.set_ylim(0, 1.05 * highest if highest > 0 else 1)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(fontsize=8, frameon=False)
    drawn = FigureCanvasAgg(figure)
    drawn.draw()
    return np.ascontiguousarray(np.asarray(drawn.buffer_rgba())[..., :3])


def _plot(axes: Any, steps: Sequence[int], values: Sequence[float], label: str) -> None:
    """The values faintly and their running mean on top."""
    window = max(1, len(values) // 25)
    padded = np.pad(np.asarray(values), (window // 2, window - 1 - window // 2), mode="edge")
    smooth = np.convolve(padded, np.ones(window) / window, mode="valid")
    (line,) = axes.plot(steps, smooth, linewidth=1.6, label=label)
    axes.plot(steps, values, linewidth=0.6, alpha=0.35, color=line.get_color())
