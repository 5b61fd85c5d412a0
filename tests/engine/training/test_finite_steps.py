"""NaN and infinities in losses and gradients: no step is made of them, and the run says where they came from."""

from __future__ import annotations

import copy
import logging
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import Tensor, nn

from flmm_detseg.engine.training import finite_steps
from flmm_detseg.engine.training.finite_steps import SKIPPED, FiniteSteps, check_state
from flmm_detseg.errors import ConfigError, RunError
from flmm_detseg.models import GradNormWeighting

GOOD, NAN_LOSS, INF_LOSS, NAN_GRADIENT, INF_GRADIENT = "good", "nan loss", "inf loss", "nan grad", "inf grad"
FACTORS = {GOOD: 1.0, NAN_LOSS: math.nan, INF_LOSS: math.inf, NAN_GRADIENT: 1.0, INF_GRADIENT: 1.0}


class Model(BaseModel):
    """A line whose loss, or only its gradient, is no number where a record says so."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(3, 2)
        for name, parameter in self.named_parameters():
            parameter.flmm_name = name

    def forward(self, samples: list[Any], mode: str = "loss") -> dict[str, Tensor]:
        total: Tensor = torch.zeros(())
        for sample in samples:
            value = self.line(torch.full((3,), float(sample.number)))
            kind = sample.kind
            if "grad" in kind:
                value.register_hook(lambda g, kind=kind: g * (math.nan if kind == NAN_GRADIENT else math.inf))
            total = total + FACTORS[kind] * value.square().mean()
        return {"loss_line": total, "loss_other": total * 0 + 1.0 if total.isfinite() else torch.ones(())}

    def trainable_state_dict(self) -> dict[str, Tensor]:
        return dict(self.state_dict())


def batch(kind: str = GOOD, number: int = 1) -> dict[str, list[Any]]:
    return {"samples": [SimpleNamespace(record_id=f"{kind} {number}", kind=kind, number=number)]}


@pytest.fixture
def runner(tmp_path, monkeypatch) -> SimpleNamespace:
    torch.manual_seed(0)
    monkeypatch.setattr(finite_steps, "unwrap", lambda model: model)
    return make(tmp_path, Model())


def make(tmp_path, model: Model, accumulation: int = 1, **options: Any) -> SimpleNamespace:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    kind = options.pop("type", OptimWrapper)
    return SimpleNamespace(
        model=model,
        optim_wrapper=kind(optimizer=optimizer, accumulative_counts=accumulation, **options),
        message_hub=MessageHub(str(tmp_path)),
        logger=logging.getLogger("finite"),
        work_dir=str(tmp_path),
        iter=0,
    )


def weights(runner: SimpleNamespace) -> list[Tensor]:
    return [p.detach().clone() for p in runner.model.parameters()]


def train(runner: SimpleNamespace, steps: FiniteSteps, *batches: dict[str, Any]) -> None:
    for one in batches:
        steps.run(one)
        runner.iter += 1


@pytest.mark.case("model/nan_batch")
@pytest.mark.parametrize("kind", [NAN_LOSS, INF_LOSS, NAN_GRADIENT, INF_GRADIENT])
def test_the_run_stops_before_the_step_and_names_iteration_terms_and_records(kind, runner, tmp_path):
    (tmp_path / "iter_1.pth").touch()
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "iter_1.pth"))
    steps = FiniteSteps(runner)
    train(runner, steps, batch(), batch(number=2))
    before, state = weights(runner), copy.deepcopy(runner.optim_wrapper.optimizer.state_dict())
    with pytest.raises(RunError) as error:
        train(runner, steps, batch(kind, 7))
    text = str(error.value)
    assert text.startswith("iteration 3: ")
    assert f"records: {kind} 7." in text
    assert ("loss_line = " in text) == ("loss" in kind)
    assert ("line.weight" in text) == ("grad" in kind)
    assert "loss_other" not in text
    assert f"last checkpoint is {tmp_path / 'iter_1.pth'}" in text
    assert all(torch.equal(a, b) for a, b in zip(before, weights(runner)))
    after = runner.optim_wrapper.optimizer.state_dict()["state"]
    for index, values in state["state"].items():
        assert all(torch.equal(values[key], after[index][key]) for key in values)


@pytest.mark.case("model/nan_batch")
@pytest.mark.parametrize("kind", [NAN_LOSS, NAN_GRADIENT])
def test_skipped_steps_are_counted_and_the_others_are_what_they_would_be_without(
    kind, runner, tmp_path, caplog
):
    plain = make(tmp_path / "plain", copy.deepcopy(runner.model))
    train(plain, FiniteSteps(plain), batch(number=1), batch(number=2), batch(number=3))
    steps = FiniteSteps(runner, "skip", max_skips=2)
    bad = batch(kind, 5)
    assert steps.run(bad) == {}, "hooks would log NaN"
    train(runner, steps, batch(number=1), bad, batch(number=2), bad, batch(number=3))
    assert all(torch.equal(a, b) for a, b in zip(weights(runner), weights(plain)))
    assert runner.message_hub.get_info(SKIPPED) == 3
    assert "This step is left out" in caplog.text
    with pytest.raises(RunError, match=r"2 steps in a row were left out"):
        train(runner, steps, bad, bad)


@pytest.mark.case("model/nan_batch")
@pytest.mark.parametrize("place", [0, 1])
def test_an_accumulation_with_a_broken_part_is_left_out_whole(place, runner, tmp_path):
    plain = make(tmp_path / "plain", copy.deepcopy(runner.model), accumulation=2)
    train(plain, FiniteSteps(plain), batch(number=1), batch(number=2))
    runner = make(tmp_path / "broken", runner.model, accumulation=2)
    steps = FiniteSteps(runner, "skip")
    parts = [batch(number=9), batch(number=8)]
    parts[place] = batch(NAN_LOSS)
    train(runner, steps, *parts, batch(number=1), batch(number=2))
    assert all(torch.equal(a, b) for a, b in zip(weights(runner), weights(plain)))
    assert runner.message_hub.get_info(SKIPPED) == 1
    stopping = FiniteSteps(runner)
    with pytest.raises(RunError, match="records: good 3, nan grad 4"):
        train(runner, stopping, batch(number=3), batch(NAN_GRADIENT, 4))


@pytest.mark.case("model/nan_batch")
def test_a_loss_scaler_lowers_its_scale_undisturbed_until_no_scale_helps(runner, tmp_path, monkeypatch):
    monkeypatch.setattr("mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available", lambda: True)
    runner = make(tmp_path / "amp", runner.model, type=AmpOptimWrapper, loss_scale=dict(init_scale=4.0))
    runner.optim_wrapper.loss_scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    steps = FiniteSteps(runner, max_skips=3)
    before = weights(runner)
    train(runner, steps, batch(INF_GRADIENT), batch(INF_GRADIENT))
    assert runner.optim_wrapper.loss_scaler.get_scale() == 1.0, "each overflow halves it"
    assert all(torch.equal(a, b) for a, b in zip(before, weights(runner)))
    train(runner, steps, batch())
    assert not torch.equal(before[0], weights(runner)[0])
    assert SKIPPED not in runner.message_hub.runtime_info
    with pytest.raises(RunError, match="iteration 6: the loss scaler left out 3 steps in a row"):
        train(runner, steps, *[batch(INF_GRADIENT)] * 3)
    with pytest.raises(RunError, match="loss terms with NaN or infinities: .*loss_line = nan"):
        steps.run(batch(NAN_LOSS))


@pytest.mark.case("model/nan_batch")
def test_all_processes_stop_where_one_finds_it(runner, monkeypatch):
    other = "process 1: loss terms with NaN or infinities: loss_line = nan; records: there 4"
    monkeypatch.setattr(finite_steps, "get_world_size", lambda: 2)
    monkeypatch.setattr(finite_steps, "all_reduce", lambda flag, op: flag.mul_(0))
    monkeypatch.setattr(finite_steps, "all_gather_object", lambda own: [own, other])
    before = weights(runner)
    with pytest.raises(RunError, match=f"^iteration 1: {other}"):
        FiniteSteps(runner).run(batch())
    assert torch.equal(before[0], weights(runner)[0])
    with pytest.raises(RunError, match="would hold NaN or infinities: those of another process"):
        check_state(runner, "iter_1.pth", optimizer=True)


@pytest.mark.parametrize("settings", [("go on", 3), ("skip", 0), ("skip", True), ("stop", 1.5)])
def test_settings_that_are_none_are_refused(settings, runner):
    with pytest.raises(ConfigError, match=r"train_cfg\.(non_finite|max_skips)"):
        FiniteSteps(runner, *settings)


@pytest.mark.case("model/nan_batch")
def test_a_state_with_nan_is_not_written(runner):
    train(runner, FiniteSteps(runner), batch())
    check_state(runner, "iter_1.pth", optimizer=True)
    moments = runner.optim_wrapper.optimizer.state[runner.model.line.bias]
    moments["exp_avg_sq"][0] = math.inf
    check_state(runner, "best.pth", optimizer=False)
    with pytest.raises(RunError, match=r"iter_1\.pth was not written.*: exp_avg_sq of line\.bias\."):
        check_state(runner, "iter_1.pth", optimizer=True)
    with torch.no_grad():
        runner.model.line.weight[0, 0] = math.nan
    with pytest.raises(RunError, match=r"best\.pth was not written.*: line\.weight\."):
        check_state(runner, "best.pth", optimizer=False)


@pytest.mark.case("model/nan_batch")
def test_gradnorm_remembers_no_first_loss_that_is_none():
    weighting = GradNormWeighting()
    weighting.setup(["a", "b"])
    weighting({"a": torch.tensor(math.nan), "b": torch.tensor(2.0)}, ())
    assert weighting.first_losses.tolist() == [0.0, 2.0]
    weighting({"a": torch.tensor(3.0), "b": torch.tensor(1.0)}, ())
    assert weighting.first_losses.tolist() == [3.0, 2.0]
