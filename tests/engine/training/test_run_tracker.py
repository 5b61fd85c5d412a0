"""Runs in other tools: values and pictures at their iterations; the tools' packages are stood in for."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

from flmm_detseg.engine import RunTracker
from flmm_detseg.errors import ConfigError, MissingDependencyError

PICTURE = np.full((4, 5, 3), 7, dtype=np.uint8)


class Package(ModuleType):
    """What is used of wandb, trackio and mlflow; remembers calls as (name, positional, named)."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args, kwargs))
            if name == "get_experiment_by_name":
                return None
            return SimpleNamespace(log=self.log, finish=self.finish) if name == "init" else (name, args)

        return call

    def of(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(args, kwargs) for called, args, kwargs in self.calls if called == name]


@pytest.fixture
def package(request, monkeypatch) -> Package:
    fake = Package(request.param)
    monkeypatch.setitem(sys.modules, request.param, fake)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return fake


def _run(tool: str, folder: str, **options: Any) -> None:
    """What MMEngine's runner does with a visualizer."""
    with DefaultScope.overwrite_default_scope("flmm_detseg"):
        visualizer = Visualizer(
            "run", vis_backends=[dict(type="RunTracker", tool=tool, **options)], save_dir=folder
        )
    visualizer.add_config(Config(dict(hook=Hook, rate=[0.1, 2], _helper=1)))
    visualizer.add_scalars({"loss": torch.tensor(1.5), "P@0.5": 0.5, "words": "none"}, step=10)
    visualizer.add_image("phrase_0", PICTURE, step=500)
    visualizer.add_scalar("loss", 1, step=510)
    visualizer.close()


@pytest.mark.parametrize("package", ["wandb", "trackio"], indirect=True)
def test_values_and_pictures_are_stored_at_their_iterations(package, tmp_path):
    _run(package.__name__, str(tmp_path), project="p", run_name="n", options=dict(group="g"))
    ((_, begun),) = package.of("init")
    assert (begun["project"], begun["name"], begun["group"]) == ("p", "n", "g")
    assert begun["config"]["rate"] == [0.1, 2]
    assert "Hook" in begun["config"]["hook"]
    assert "_helper" not in begun["config"], "trackio refuses such names"
    (first, picture, last) = package.of("log")
    assert first == (({"loss": 1.5, "P@0.5": 0.5},), {"step": 10})
    assert last == (({"loss": 1.0},), {"step": 510})
    assert picture[1] == {"step": 500}
    (((shown,), _),) = package.of("Image")
    assert shown is PICTURE
    assert list(picture[0][0]) == ["phrase_0"]
    assert len(package.of("finish")) == 1


@pytest.mark.parametrize("package", ["mlflow"], indirect=True)
def test_mlflow_gets_a_database_unless_a_server_is_named(package, tmp_path, monkeypatch):
    _run("mlflow", str(tmp_path), run_name="n")
    (((address,), _),) = package.of("set_tracking_uri")
    assert address == f"sqlite:///{tmp_path.resolve()}/vis_data/mlflow.db"
    ((_, made),) = package.of("create_experiment")
    assert made["artifact_location"] == (tmp_path.resolve() / "vis_data" / "mlflow").as_uri()
    assert package.of("start_run") == [((), {"run_name": "n"})]
    assert package.of("log_metrics") == [
        (({"loss": 1.5, "P_0.5": 0.5},), {"step": 10}),
        (({"loss": 1.0},), {"step": 510}),
    ]
    ((pictures, named),) = package.of("log_image")
    assert pictures[0] is PICTURE
    assert (named["key"], named["step"]) == ("phrase_0", 500)
    assert [args[0]["rate"] for args, _ in package.of("log_dict")] == [[0.1, 2]]
    assert len(package.of("end_run")) == 1

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    _run("mlflow", str(tmp_path))
    assert len(package.of("set_tracking_uri")) == 1


@pytest.mark.parametrize("package", ["wandb"], indirect=True)
def test_a_run_that_never_began_is_not_ended(package, tmp_path):
    tracker = RunTracker("wandb", str(tmp_path))
    tracker.close()
    assert package.calls == []
    assert tracker.experiment is tracker.experiment
    assert len(package.of("init")) == 1


def test_a_tool_that_is_unknown_or_absent_is_said_before_the_run(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="tensorbored.*wandb, mlflow, trackio"):
        RunTracker("tensorbored", str(tmp_path))
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(MissingDependencyError, match="pip install trackio"):
        RunTracker("trackio", str(tmp_path))
