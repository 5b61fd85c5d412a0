"""Runs a plan: trainings in order, each from the checkpoints before it, then evaluations; goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.experiments.plan import Evaluation, Plan, Run, read_plan
from flmm_detseg.models.from_config import read_config
from flmm_detseg.utils.configs import config_file, config_name
from flmm_detseg.utils.lock import hold
from flmm_detseg.utils.paths import find
from flmm_detseg.utils.process import Command, Progress, run_commands
from flmm_detseg.utils.provenance import named_paths
from flmm_detseg.utils.scripts import start_script
from flmm_detseg.utils.whole_files import read_json, write_json

DONE_FILE = "done.json"


def run_plan(
    plan_file: str | Path,
    work_dir: str | Path | None = None,
    *,
    slots: int = 2,
    fresh: bool = False,
    cfg_options: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Trains all stages of a plan and evaluates.

    A run that is done is not repeated as long as its config, its overrides and the checkpoints it starts from are
    the same; a run that was stopped goes on from its last checkpoint.

    Args:
        plan_file: See :func:`~flmm_detseg.experiments.plan.read_plan`.
        work_dir: Folder of all runs; None: ``work_dirs/<plan name>``.
        slots: Runs of a stage side by side (at most); the cores are shared among them.
        fresh: Repeat what is done.
        cfg_options: Overrides for every training.

    Returns:
        ``runs`` and ``evaluations``: figures by name; ``seconds``, ``results`` (file). Also written to
        ``results.json``.

    Raises:
        ConfigError: The plan cannot be used.
        RunError: A run failed; names it and its log.
    """
    plan = read_plan(plan_file)
    folder = Path(work_dir or f"work_dirs/{config_name(plan_file)}")
    if any(character.isspace() or character in "[](),'\"" for character in str(folder.resolve())):
        raise ConfigError(
            f"the work folder {str(folder.resolve())!r} has a blank, bracket, comma or quote in its path, which "
            "MMEngine's --cfg-options cannot carry; choose another"
        )
    hold(folder / ".plan.lock", f"the plan in {folder}")
    progress = Progress([None] * (len(plan.stages) + 1))
    figures: dict[str, dict[str, Any]] = {}
    for stage in plan.stages:
        progress.start(f"stage {stage.name}: {', '.join(run.name for run in stage.runs)}")
        commands, keys = [], {}
        for run in stage.runs:
            key = _key(run, figures, cfg_options)
            earlier = None if fresh else _read_done(folder / run.name, key)
            if earlier is not None:
                figures[run.name] = earlier
                continue
            keys[run.name] = key
            commands.append(_training(run, folder, figures, fresh, key, cfg_options))
        if commands:

            def done(name: str, value: dict[str, Any], keys: dict[str, str] = keys) -> None:
                write_json(folder / name / DONE_FILE, {"key": keys[name], "figures": value})

            figures.update(_run(commands, folder, progress, slots, done))
        progress.done()
    progress.start("evaluation")
    evaluations: dict[str, dict[str, Any]] = {}
    if plan.evaluations:
        commands = [_evaluation(item, plan, folder, figures) for item in plan.evaluations]
        evaluations = _run(commands, folder, progress, slots)
    progress.done()
    results = {
        "plan": str(plan_file),
        "runs": figures,
        "evaluations": evaluations,
        "seconds": progress.seconds,
    }
    write_json(folder / "results.json", results)
    metrics = {name: value.get("metrics", value) for name, value in evaluations.items()}
    return {
        "runs": {name: value["checkpoint"] for name, value in figures.items()},
        "evaluations": metrics,
        "seconds": round(sum(progress.seconds.values()), 1),
        "results": str(folder / "results.json"),
    }


def _run(
    commands: list[Command],
    folder: Path,
    progress: Progress,
    slots: int,
    on_done: Callable[[str, dict[str, Any]], None] | None = None,
) -> dict[str, dict[str, Any]]:
    slots = max(1, min(slots, len(commands), os.cpu_count() or 1))
    threads = max(1, (os.cpu_count() or 1) // slots)
    return run_commands(commands, folder / "logs", progress, slots=slots, threads=threads, on_done=on_done)


def _training(
    run: Run,
    folder: Path,
    figures: Mapping[str, Mapping[str, Any]],
    fresh: bool,
    key: str,
    cfg_options: tuple[str, ...],
) -> Command:
    arguments = [str(config_file(run.config)), "--work-dir", str(folder / run.name)]
    options = [*run.cfg_options, *cfg_options]
    if run.init_from:
        files = [_checkpoint(source, figures) for source in run.init_from]
        options += [
            f"model.init_from={json.dumps(files, separators=(',', ':'))}",
            f"model.new_parts={json.dumps(list(run.new_parts), separators=(',', ':'))}",
        ]
    started, pointer = (folder / run.name / name for name in ("started.json", "last_checkpoint"))
    same = started.is_file() and _state_of(started, key) is not None
    if fresh or not same:
        # Before the new key is written: a later start must not take the other run's checkpoint for this one's.
        for file in (pointer, folder / run.name / DONE_FILE):
            file.unlink(missing_ok=True)
    elif pointer.is_file():
        arguments += ["--resume"]
    write_json(started, {"key": key})
    if options:
        arguments += ["--cfg-options", *options]
    return Command(run.name, [*start_script("train.py"), *arguments])


def _evaluation(
    item: Evaluation, plan: Plan, folder: Path, figures: Mapping[str, Mapping[str, Any]]
) -> Command:
    if item.run is None:
        assert item.config is not None, item.name
        arguments = [str(config_file(item.config)), "--untrained"]
    else:
        config = config_file(item.config or plan.runs[item.run].config)
        arguments = [str(config), "--checkpoint", str(figures[item.run]["checkpoint"])]
    arguments += ["--work-dir", str(folder / "eval" / item.name), *item.arguments]
    if item.checkpoints:
        arguments.append("--cfg-options")
        arguments += [f"{key}={figures[run]['checkpoint']}" for key, run in item.checkpoints.items()]
    return Command(item.name, [*start_script(item.tool), *arguments])


def _checkpoint(source: str, figures: Mapping[str, Mapping[str, Any]]) -> str:
    return str(figures[source]["checkpoint"]) if source in figures else source


def _key(run: Run, figures: Mapping[str, Mapping[str, Any]], cfg_options: tuple[str, ...]) -> str:
    """What a run's result depends on, as far as files show it."""
    config = read_config(run.config)
    digest = hashlib.sha256(config.pretty_text.encode())
    for path in sorted(named_paths(config.to_dict())):
        digest.update(_state(path).encode())
    digest.update(json.dumps([run.cfg_options, run.new_parts, cfg_options]).encode())
    for source in run.init_from:
        file = find(_checkpoint(source, figures))
        if not file.exists():
            raise ConfigError(
                f"run {run.name} starts from {file}, which does not exist; make it first (python tools/train_stages.py "
                "configs/tiny/detseg_stages.py makes those of the repository's plans)"
            )
        for part in sorted(p for p in file.rglob("*") if p.is_file()) if file.is_dir() else [file]:
            digest.update(part.read_bytes())
    return digest.hexdigest()


def _state(path: Path) -> str:
    """Name, size and time of a file, or of what lies in a folder: contents of gigabytes are not read."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [(file.name, file.stat()) for file in files]
    return json.dumps([str(path), [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]])


def _state_of(file: Path, key: str) -> Mapping[str, Any] | None:
    """What a file of a plan's state says about a run; None where it is about another one.

    Raises:
        DataError: The file is damaged.
    """
    remedy = (
        "it says which run of the plan its folder holds; delete it, and the run starts from the beginning"
    )
    content = read_json(file, remedy)
    if not isinstance(content, Mapping):
        raise DataError(f"{file} is damaged: {remedy}")
    return content if content.get("key") == key else None


def _read_done(folder: Path, key: str) -> dict[str, Any] | None:
    file = folder / DONE_FILE
    if not file.is_file():
        return None
    content = _state_of(file, key)
    if content is None or not Path(content["figures"]["checkpoint"]).exists():
        return None
    return content["figures"]
