"""The steps of the background cache's training: each starts from the one before, and adds what it says."""

from __future__ import annotations

import os
from typing import Any

import pytest
from mmengine.config import Config

from flmm_detseg.errors import CheckpointError
from flmm_detseg.experiments.plan import read_plan
from flmm_detseg.lmms.weights.trained_layout import check_layout, layout_text
from flmm_detseg.models.from_config import read_config
from flmm_detseg.registry import MODELS, OPTIMIZERS
from flmm_detseg.utils.paths import REPOSITORY

LADDER = REPOSITORY / "configs" / "cache" / "tiny_ladder_stages.py"


@pytest.fixture(scope="module")
def plan():
    return read_plan(LADDER)


@pytest.fixture(scope="module")
def built(plan) -> dict[str, tuple[set[str], dict[str, Any] | None]]:
    """Names of the trained tensors and layout of every run, and of every evaluated config without a run."""
    before = os.getcwd()
    os.chdir(REPOSITORY)  # weights of the tiny LLaVA are named relative to it
    try:
        configs = {run.name: run.config for run in plan.runs.values() if run.name != "detector"}
        configs |= {item.name: item.config for item in plan.evaluations if item.run is None}
        return {name: _built(read_config(config)) for name, config in configs.items()}
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def trained(built) -> dict[str, set[str]]:
    return {name: names for name, (names, _) in built.items()}


def _built(config: Config) -> tuple[set[str], dict[str, Any] | None]:
    model = MODELS.build(config.model)
    names = set(model.trainable_state_dict())
    if names:
        # Groups that match no parameter are refused.
        optimizer = OPTIMIZERS.build(dict(config.optim_wrapper.optimizer, params=model.parameters()))
        assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)
    return names, model.lmm.trained_layout


def test_every_step_is_evaluated_on_the_same_questions(plan):
    assert {item.run for item in plan.evaluations} == {None, *plan.runs} - {"detector"}
    assert {item.tool for item in plan.evaluations} == {"eval_vqa.py"}
    configs = [item.config or plan.runs[item.run].config for item in plan.evaluations]
    questions = [read_config(REPOSITORY / config).vqa_eval.to_dict() for config in configs]
    assert all(found == questions[0] for found in questions)


def test_the_detector_is_the_one_that_the_plan_trains(plan):
    config = "configs/cache/tiny_ladder_detected.py"
    detected = [item for item in plan.evaluations if item.config == config and item.run]
    assert len(detected) == 2
    (key,) = {key for item in detected for key in item.checkpoints}
    assert {item.checkpoints[key] for item in detected} == {"detector"}
    source = read_config(REPOSITORY / config).model.lmm.partitioner.source.otherwise
    assert source.config == plan.runs["detector"].config
    assert key == "model.lmm.partitioner.source.otherwise.checkpoint"
    assert "checkpoint" in source


def test_the_first_steps_train_nothing(plan, trained):
    untrained = [item.name for item in plan.evaluations if item.run is None]
    assert untrained == ["vqa.rung0", "vqa.rung1", "vqa.rung2", "vqa.rung2_packed"]
    assert not any(trained[name] for name in untrained)


def test_a_step_trains_what_it_starts_from_and_what_it_says_is_new(plan, trained):
    chained = [run for run in plan.runs.values() if run.init_from]
    assert len(chained) == 8
    for run in chained:
        (start,) = run.init_from
        new = trained[run.name] - trained[start]
        assert trained[start] < trained[run.name]
        assert all(name.startswith(run.new_parts) for name in new)
        assert all(any(name.startswith(part) for name in new) for part in run.new_parts)


def test_a_step_keeps_the_layout_of_the_one_it_starts_from(plan, built):
    layouts = {name: layout for name, (_, layout) in built.items()}
    chained = [(run.name, start) for run in plan.runs.values() for start in run.init_from]
    assert layouts["rung4_compressed"]["compressed"] == 9
    for name, start in chained:
        check_layout(layouts[name], layout_text(layouts[start]), start, start=True)
        with pytest.raises(CheckpointError, match="positions"):
            check_layout(
                {**layouts[name], "positions": "other"}, layout_text(layouts[start]), start, start=True
            )


def test_the_control_trains_the_lora_of_step_5_and_nothing_else(trained):
    assert trained["stock_lora"] == trained["rung5_lora"] - trained["rung3"]
    assert trained["stock_lora_long"] == trained["rung5_lora_long"] - trained["rung3"]
    assert {name.split(".")[1] for name in trained["rung3"]} == {"separators", "model"}


def test_the_long_control_sees_what_the_long_step_sees(plan):
    cached, control = (
        read_config(REPOSITORY / plan.runs[name].config) for name in ("rung5_lora_long", "stock_lora_long")
    )
    short = read_config(REPOSITORY / plan.runs["rung5_lora"].config)
    for key in ("train_dataloader", "train_cfg", "param_scheduler", "optim_wrapper"):
        assert cached[key] == control[key]
    assert cached.train_cfg.max_iters == 4 * short.train_cfg.max_iters == cached.param_scheduler[1]["end"]
    scenes, streams = (dataset["file"] for dataset in cached.train_dataloader.dataset.datasets)
    assert (scenes, streams) == (
        "data/tinyworld_large/llava/train.json",
        "data/tinyworld_streams/train.jsonl",
    )
