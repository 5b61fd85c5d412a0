"""What a chain of runs consists of, read from a Python file and checked before anything starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

from flmm_detseg.errors import ConfigError
from flmm_detseg.utils.configs import config_file
from flmm_detseg.utils.names import suggest
from flmm_detseg.utils.scripts import is_script


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: Unique in the plan; its folder below the work folder.
        config: Config file.
        init_from: Earlier runs (or checkpoint files) whose tensors it starts from.
        new_parts: Prefixes of parameters that those do not hold.
        cfg_options: ``key=value`` overrides.
    """

    name: str
    config: str
    init_from: tuple[str, ...] = ()
    new_parts: tuple[str, ...] = ()
    cfg_options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """Runs that do not need each other; they may go side by side."""

    name: str
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Evaluation:
    """One tool on one run's checkpoint, or on a config as it is.

    Attributes:
        name: Unique in the plan.
        tool: Script in ``tools/``.
        run: Whose config and checkpoint it takes; None for a config of which nothing is trained.
        arguments: Further arguments.
        config: Config instead of the run's, for another way to use its checkpoint; needed without a run.
        checkpoints: Config key -> run whose checkpoint is put there: of further models that the config names.
    """

    name: str
    tool: str
    run: str | None
    arguments: tuple[str, ...] = ()
    config: str | None = None
    checkpoints: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Stages in order, then evaluations."""

    stages: tuple[Stage, ...]
    evaluations: tuple[Evaluation, ...] = field(default=())

    @property
    def runs(self) -> dict[str, Run]:
        """All runs by name."""
        return {run.name: run for stage in self.stages for run in stage.runs}


def read_plan(path: str | Path) -> Plan:
    """Reads ``stages`` and ``evaluations`` of a Python config.

    The form: ``stages = [dict(name=..., runs=[dict(name=..., config=..., init_from=[...], new_parts=[...],
    cfg_options=[...])])]``, ``evaluations = [dict(name=..., tool=..., run=..., arguments=[...])]``; with
    ``runs=[...]`` the same evaluation is made of each, with ``config=...`` and no run it is made of an untrained model;
    ``checkpoints={KEY: RUN}`` puts checkpoints of further runs into its config.

    Args:
        path: The plan's file.

    Returns:
        The plan; names in it refer to runs of an earlier stage.

    Raises:
        ConfigError: No such file, it cannot be executed, a key is missing or unknown, a name is used twice or refers
            to nothing earlier; names the place.
    """
    path = config_file(path, "plan")
    try:
        content = Config.fromfile(path).to_dict()
    except Exception as error:  # whatever the user's Python file raises is the message
        raise ConfigError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if not content.get("stages"):
        raise ConfigError(f"{path} has no `stages`; see configs/tiny/detseg_stages.py")
    stages = []
    for i, item in enumerate(content["stages"]):
        where = f"{path}: stages[{i}]"
        fields = _fields(item, ("name", "runs"), (), where)
        runs = tuple(
            Run(
                **_fields(
                    run, ("name", "config"), ("init_from", "new_parts", "cfg_options"), f"{where}.runs[{j}]"
                )
            )
            for j, run in enumerate(fields["runs"])
        )
        stages.append(Stage(fields["name"], runs))
    evaluations = [
        evaluation
        for i, item in enumerate(content.get("evaluations", ()))
        for evaluation in _evaluations(item, f"{path}: evaluations[{i}]")
    ]
    plan = Plan(tuple(stages), tuple(evaluations))
    _check(plan, path)
    return plan


def _evaluations(item: Mapping[str, Any], where: str) -> list[Evaluation]:
    """One evaluation, or the same one of several runs (``runs``), named ``NAME.RUN`` then."""
    if "runs" not in item:
        needed = "run" if "config" not in item else "config"
        fields = _fields(item, ("name", "tool", needed), ("arguments", "checkpoints", "config", "run"), where)
        return [Evaluation(**{"run": None, **fields})]
    fields = _fields(item, ("name", "tool", "runs"), ("arguments",), where)
    return [
        Evaluation(f"{fields['name']}.{run}", fields["tool"], run, fields.get("arguments", ()))
        for run in fields["runs"]
    ]


def _fields(
    item: Mapping[str, Any], required: Sequence[str], optional: Sequence[str], where: str
) -> dict[str, Any]:
    for key in required:
        if key not in item:
            raise ConfigError(f"{where} lacks `{key}`")
    allowed = (*required, *optional)
    for key in item:
        if key not in allowed:
            raise ConfigError(f"{where} has no key `{key}`{suggest(key, list(allowed))}")
    lists = {key: tuple(item[key]) for key in item if isinstance(item[key], list | tuple)}
    return {**item, **lists}


def _check(plan: Plan, path: Path) -> None:
    names = [run.name for stage in plan.stages for run in stage.runs]
    names += [item.name for item in plan.evaluations]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"{path}: these names are used twice: {', '.join(sorted(twice))}")
    earlier: list[str] = []
    for stage in plan.stages:
        for run in stage.runs:
            if not _is_config(run.config):
                raise ConfigError(f"{path}: run {run.name}: config {run.config} does not exist")
            for source in run.init_from:
                if source not in earlier and not source.endswith((".pth", ".pt")):
                    raise ConfigError(
                        f"{path}: run {run.name} starts from {source!r}, which is no run of an earlier stage"
                        f"{suggest(source, earlier)}"
                    )
        earlier += [run.name for run in stage.runs]
    for item in plan.evaluations:
        for name in (*filter(None, [item.run]), *item.checkpoints.values()):
            if name not in plan.runs:
                raise ConfigError(
                    f"{path}: evaluation {item.name}: no run {name!r}{suggest(name, list(plan.runs))}"
                )
        if item.config is not None and not _is_config(item.config):
            raise ConfigError(f"{path}: evaluation {item.name}: config {item.config} does not exist")
        if not is_script(item.tool):
            raise ConfigError(f"{path}: evaluation {item.name}: tools/{item.tool} does not exist")


def _is_config(name: str) -> bool:
    try:
        config_file(name)
    except ConfigError:
        return False
    return True
