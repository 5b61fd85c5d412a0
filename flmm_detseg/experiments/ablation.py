"""One table from many runs: metrics, trained parameters, memory and time of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flmm_detseg.errors import ConfigError
from flmm_detseg.experiments.plan import read_plan
from flmm_detseg.experiments.stages import run_plan
from flmm_detseg.utils.configs import config_file, config_name
from flmm_detseg.utils.whole_files import read_json, write_json, write_text

_MIB = 2**20


def ablation_table(
    plan_file: str | Path,
    work_dir: str | Path | None = None,
    *,
    columns: Sequence[str] = (),
    slots: int = 2,
    fresh: bool = False,
    cfg_options: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Runs a plan and writes one row per run: metrics, trainable parameters, peak memory, time.

    Args:
        plan_file: See :func:`~flmm_detseg.experiments.plan.read_plan`; ``columns = ["coco.bbox_AP50", ...]`` in the
            file chooses the metrics (``EVALUATION.METRIC``), ``title`` heads the table.
        work_dir: See :func:`~flmm_detseg.experiments.stages.run_plan`.
        columns: Instead of the file's.
        slots: See there.
        fresh: See there.
        cfg_options: See there.

    Returns:
        ``rows`` (per run its figures), ``table`` (Markdown file), ``results``.

    Raises:
        ConfigError: The plan cannot be used, or a column is in no evaluation.
        RunError: A run failed.
    """
    from mmengine.config import Config

    plan = read_plan(plan_file)
    settings = Config.fromfile(config_file(plan_file, "plan"))
    columns = list(columns or settings.get("columns", ()))
    outcome = run_plan(plan_file, work_dir, slots=slots, fresh=fresh, cfg_options=cfg_options)
    results = read_json(Path(outcome["results"]), "start the plan again, what is done is kept")
    # An evaluation without a run has a row of its own, before the trained ones: KIND.ROW.
    rows_of = {item.name: item.run or item.name.rpartition(".")[2] for item in plan.evaluations}
    untrained = [rows_of[item.name] for item in plan.evaluations if item.run is None]
    metrics: dict[str, dict[str, float]] = {name: {} for name in (*untrained, *plan.runs)}
    for evaluation in plan.evaluations:
        figures = results["evaluations"][evaluation.name]
        kind = evaluation.name.removesuffix(f".{rows_of[evaluation.name]}")
        metrics[rows_of[evaluation.name]].update(
            {f"{kind}.{key}": value for key, value in flatten(figures.get("metrics", figures)).items()}
        )
    known = sorted({key for values in metrics.values() for key in values})
    rows = [
        {
            "run": name,
            **{column: metrics[name].get(column) for column in columns or known},
            "trainable": results["runs"].get(name, {}).get("trainable_parameters"),
            "peak_memory_mib": _mib(results["runs"].get(name, {}).get("peak_memory_bytes")),
            "iterations": results["runs"].get(name, {}).get("iterations"),
            "seconds": results["runs"].get(name, {}).get("seconds"),
        }
        for name in metrics
    ]
    folder = Path(outcome["results"]).parent
    table = folder / "table.md"
    write_text(table, markdown(rows, settings.get("title", config_name(plan_file)), str(plan_file)))
    write_json(folder / "table.json", rows)
    # After the table is written, so that a misspelt column does not cost hours of training.
    if missing := [column for column in columns if column not in known]:
        raise ConfigError(
            f"{plan_file}: columns {', '.join(missing)} are in no evaluation; there are {', '.join(known)}"
        )
    return {"rows": rows, "table": str(table), "results": outcome["results"]}


def flatten(figures: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers of nested figures by dotted name; a level with one member only is left out of the name."""
    flat: dict[str, float] = {}
    only = len(figures) == 1
    for key, value in figures.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, prefix if only else f"{prefix}{key}."))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[f"{prefix}{key}"] = float(value)
    return flat


def markdown(rows: Sequence[Mapping[str, Any]], title: str, source: str) -> str:
    """The rows as a Markdown table."""
    columns = list(rows[0])
    lines = [f"# {title}", "", f"`python tools/ablation_table.py {source}`", ""]
    lines.append("| " + " | ".join(columns) + " |")
    lines.append("|" + "---|" * len(columns))
    lines += ["| " + " | ".join(_cell(row[column]) for column in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 10 else f"{value:.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _mib(size: int | None) -> int | None:
    return None if size is None else round(size / _MIB)
