"""Resuming: state by name, everything that can be stated from the config, the same bits where nothing changed."""

from __future__ import annotations

import copy
import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.optim import AmpOptimWrapper, CosineAnnealingLR, LinearLR, OptimWrapper, ReduceOnPlateauLR
from torch import nn
from torch.optim import AdamW

from flmm_detseg.engine import GroupedAdamW
from flmm_detseg.engine.training.resume import (
    PARAMETERS,
    check_order,
    follow_config,
    follow_config_of_engine,
    parameter_names,
)
from flmm_detseg.engine.training.trainer import _resume_from
from flmm_detseg.errors import CheckpointError
from flmm_detseg.models import GradNormWeighting, UncertaintyWeighting
from flmm_detseg.models.checkpoint import HEADS, head_order

GROUPS = {"alpha": dict(lr_mult=0.5), "zeta": dict(lr_mult=2.0, decay_mult=0.0)}


def model(*names: str, alpha: int = 3) -> nn.ModuleDict:
    """Heads of equal shapes beside something frozen; weights go by name."""
    made = nn.ModuleDict({"lmm": nn.Linear(3, 3).requires_grad_(False)})
    made["heads"] = nn.ModuleDict({name: nn.Linear(alpha if name == "alpha" else 3, 2) for name in names})
    for name, parameter in made.named_parameters():
        parameter.flmm_name = name
        generator = torch.Generator().manual_seed(sum(map(ord, name)))
        parameter.data = torch.rand(parameter.shape, generator=generator)
    return made


def run(
    net: nn.ModuleDict, end: int = 8, groups: dict | None = None, kind: type = OptimWrapper, **settings: Any
) -> SimpleNamespace:
    settings = dict(lr=0.1, weight_decay=0.05) | settings
    maker = AdamW if groups is None else GroupedAdamW
    optimizer = maker(net.parameters(), **settings, **({} if groups is None else dict(groups=groups)))
    wrapper = kind(optimizer=optimizer)
    schedulers = [
        LinearLR(wrapper, start_factor=0.1, by_epoch=False, begin=0, end=3),
        CosineAnnealingLR(wrapper, eta_min=0.0, by_epoch=False, begin=3, end=end),
    ]
    return SimpleNamespace(
        model=net, optim_wrapper=wrapper, param_schedulers=schedulers, logger=logging.getLogger("resume")
    )


def train(one: SimpleNamespace, start: int, end: int) -> list[float]:
    """Steps with gradients that go by name and iteration; the rates that were used."""
    rates = []
    for step in range(start, end):
        for parameter in (p for p in one.model.parameters() if p.requires_grad):
            generator = torch.Generator().manual_seed(step * 10_000 + sum(map(ord, parameter.flmm_name)))
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        rates.append(one.optim_wrapper.optimizer.param_groups[0]["lr"])
        one.optim_wrapper.step()
        for scheduler in one.param_schedulers:
            scheduler.step()
    return rates


def stored(one: SimpleNamespace, done: int, *, names: bool = True) -> dict[str, Any]:
    """As the checkpoint hook writes it; without names, as it did before."""
    tensors = {name: p.detach() for name, p in one.model.named_parameters() if p.requires_grad}
    meta = {"iter": done} | ({PARAMETERS: parameter_names(one.optim_wrapper.optimizer)} if names else {})
    content = {
        "meta": meta,
        "state_dict": tensors,
        "optimizer": one.optim_wrapper.state_dict(),
        "param_schedulers": [scheduler.state_dict() for scheduler in one.param_schedulers],
    }
    return copy.deepcopy(content)


def resume(one: SimpleNamespace, content: dict[str, Any]) -> None:
    """In the order of MMEngine's runner."""
    content = copy.deepcopy(content)
    follow_config(one, content, "iter_4.pth")
    with torch.no_grad():
        for name, parameter in one.model.named_parameters():
            if name in content["state_dict"]:
                parameter.copy_(content["state_dict"][name])
    one.optim_wrapper.load_state_dict(content["optimizer"])
    for scheduler, state in zip(one.param_schedulers, content["param_schedulers"]):
        scheduler.load_state_dict(state)


def same(one: nn.Module, other: nn.Module) -> bool:
    theirs = dict(other.named_parameters())
    return all(torch.equal(p, theirs[name]) for name, p in one.named_parameters())


@pytest.mark.case("model/resume_head_order")
@pytest.mark.parametrize("names", [True, False], ids=["names", "an older file"])
@pytest.mark.parametrize("groups", [None, GROUPS], ids=["one group", "groups"])
@pytest.mark.parametrize("order", [("zeta", "alpha", "mu"), ("alpha", "mu", "zeta")])
def test_the_state_goes_by_name_whatever_the_order_and_gives_the_same_bits(order, groups, names):
    whole = run(model("zeta", "alpha", "mu"), groups=groups)
    train(whole, 0, 4)
    content = stored(whole, 4, names=names)
    rates = train(whole, 4, 8)
    turned = None if groups is None else dict(reversed(groups.items()))
    again = run(model(*order), groups=turned)
    resume(again, content)
    found = train(again, 4, 8)
    assert same(again.model, whole.model)
    if groups is None:
        assert found == rates


@pytest.mark.case("model/resume_head_order")
def test_a_file_without_parameter_names_is_matched_by_index_where_shapes_agree(caplog):
    whole = run(model("zeta", "alpha"))
    train(whole, 0, 4)
    content = stored(whole, 4, names=False)
    content["state_dict"] = dict(reversed(content["state_dict"].items()))
    resume(run(model("zeta", "alpha")), content)
    assert "its optimizer state is matched by index" in caplog.text
    whole = run(model("zeta", "alpha", alpha=5))
    train(whole, 0, 4)
    content = stored(whole, 4, names=False)
    content["state_dict"] = dict(reversed(content["state_dict"].items()))
    with pytest.raises(
        CheckpointError, match=r"state 2 does not belong to the parameter.*start from its tensors"
    ):
        resume(run(model("alpha", "zeta", alpha=5)), content)


@pytest.mark.case("model/resume_head_order")
def test_the_state_of_another_kind_of_optimizer_is_refused():
    whole = run(model("zeta"))
    train(whole, 0, 2)
    other = run(model("zeta"))
    other.optim_wrapper = OptimWrapper(torch.optim.SGD(other.model.parameters(), lr=0.1, momentum=0.9))
    other.param_schedulers = None
    with pytest.raises(CheckpointError, match="another kind of optimizer"):
        follow_config(other, stored(whole, 2), "iter_2.pth")


@pytest.mark.case("model/resume_schedule")
@pytest.mark.parametrize("groups", [None, GROUPS], ids=["one group", "groups"])
def test_what_the_config_states_is_followed_at_the_iteration_that_is_reached(groups, caplog):
    caplog.set_level(logging.INFO)
    whole = run(model("zeta", "alpha"), end=6, groups=groups)
    train(whole, 0, 6)
    changed = dict(end=12, groups=groups, lr=0.3, weight_decay=0.2, betas=(0.8, 0.95))
    straight, again = run(model("zeta", "alpha"), **changed), run(model("zeta", "alpha"), **changed)
    expected = train(straight, 0, 12)
    resume(again, stored(whole, 6))
    assert train(again, 6, 12) == expected[6:]
    for group, other in zip(*(one.optim_wrapper.optimizer.param_groups for one in (again, straight))):
        assert {k: v for k, v in group.items() if k != "params"} == {
            k: v for k, v in other.items() if k != "params"
        }
    assert "by this run's config, which is followed" in caplog.text
    moments = again.optim_wrapper.optimizer.state[again.model["heads"]["zeta"].weight]
    assert float(moments["step"]) == 12, "the state is the checkpoint's"


@pytest.mark.case("model/resume_schedule")
def test_a_schedule_with_a_history_of_results_keeps_it():
    def plateau() -> SimpleNamespace:
        one = run(model("zeta"))
        one.param_schedulers = [ReduceOnPlateauLR(one.optim_wrapper, monitor="loss", patience=1)]
        return one

    whole = plateau()
    for value in (1.0, 2.0, 3.0, 4.0):
        whole.param_schedulers[0].step({"loss": value})
    train_rate = whole.optim_wrapper.optimizer.param_groups[0]["lr"]
    again = plateau()
    resume(again, stored(whole, 4))
    assert again.optim_wrapper.optimizer.param_groups[0]["lr"] == train_rate < 0.1
    assert again.param_schedulers[0].best == 1.0


@pytest.mark.case("model/resume_schedule")
def test_a_stated_loss_scale_is_followed_and_a_dynamic_one_goes_on(monkeypatch):
    monkeypatch.setattr("mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available", lambda: True)

    def scaled(static: float | None = None, interval: int = 10) -> SimpleNamespace:
        one = run(model("zeta"), kind=AmpOptimWrapper)
        one.optim_wrapper.loss_scaler = torch.amp.GradScaler(
            "cpu", init_scale=static or 8.0, growth_interval=interval
        )
        one.optim_wrapper._scale_update_param = static
        return one

    whole = scaled()
    whole.optim_wrapper.loss_scaler.load_state_dict(
        whole.optim_wrapper.loss_scaler.state_dict() | {"scale": 2.0, "_growth_tracker": 4}
    )
    train_state = stored(whole, 0)
    train_state["optimizer"]["state"] = {}
    for one, scale, interval in ((scaled(interval=5), 2.0, 5), (scaled(static=16.0), 16.0, 10)):
        resume(one, train_state)
        found = one.optim_wrapper.loss_scaler.state_dict()
        assert (found["scale"], found["growth_interval"]) == (scale, interval)


@pytest.mark.case("model/resume_schedule")
def test_deepspeed_s_resume_keeps_what_the_config_states():
    whole, straight = run(model("zeta"), end=6), run(model("zeta"), end=12, lr=0.3)
    train(whole, 0, 6)
    expected = train(straight, 0, 12)
    engine = run(model("zeta"), end=12, lr=0.3)

    def resume_folder(filename, *, resume_param_scheduler=True, **options):
        assert not resume_param_scheduler, "they would overrule the config"
        engine.optim_wrapper.load_state_dict(whole.optim_wrapper.state_dict())
        return {"meta": {"iter": 6}, "param_schedulers": [None, None]}

    engine.resume = resume_folder
    follow_config_of_engine(engine)
    engine.resume("iter_6.pth", resume_param_scheduler=True)
    assert train(engine, 6, 12) == expected[6:]

    whole.optim_wrapper.optimizer.state[whole.model["heads"]["zeta"].bias]["exp_avg"][0] = float("nan")
    engine = run(model("zeta"), end=12)
    engine.resume = resume_folder
    follow_config_of_engine(engine)
    with pytest.raises(CheckpointError, match=r"iter_6\.pth holds NaN .*: exp_avg of heads\.zeta\.bias\."):
        engine.resume("iter_6.pth")


@pytest.mark.case("model/resume_head_order")
def test_deepspeed_s_partitions_are_refused_in_another_order():
    def zero(*names: str) -> SimpleNamespace:
        return SimpleNamespace(bit16_groups=[list(model(*names)["heads"].parameters())])

    content = {"meta": {PARAMETERS: parameter_names(zero("zeta", "alpha"))}}
    check_order(zero("zeta", "alpha"), content, "iter_4.pth")
    check_order(zero("alpha", "zeta"), {"meta": {}}, "an older folder")
    with pytest.raises(
        CheckpointError, match=r"parameter 0 was heads\.zeta\.weight, now heads\.alpha\.weight"
    ):
        check_order(zero("alpha", "zeta"), content, "iter_4.pth")
    with pytest.raises(CheckpointError, match=r"parameter 2 was heads\.alpha\.weight, now nothing"):
        check_order(zero("zeta"), content, "iter_4.pth")


@pytest.mark.case("model/resume_head_order")
def test_the_order_of_heads_is_recorded_or_that_of_the_tensors():
    tensors = {"lmm.x": 0, "heads.zeta.a": 0, "heads.alpha.a": 0, "heads.zeta.b": 0}
    assert head_order({"state_dict": tensors, "meta": {}}) == ["zeta", "alpha"]
    assert head_order({"module": tensors}) == head_order(tensors) == ["zeta", "alpha"]
    assert head_order({"state_dict": tensors, "meta": {HEADS: ["alpha", "zeta"]}}) == ["alpha", "zeta"]


@pytest.mark.case("model/resume_head_order")
def test_what_a_balancer_keeps_by_task_follows_the_order():
    weighting = GradNormWeighting()
    weighting.setup(["a", "b", "c"])
    with torch.no_grad():
        weighting.logits.copy_(torch.tensor([0.1, 0.2, 0.3]))
        weighting.first_losses.copy_(torch.tensor([1.0, 2.0, 3.0]))
    before = weighting.statistics()
    weighting.order(["c", "a", "b"])
    assert weighting.first_losses.tolist() == [3.0, 1.0, 2.0]
    assert weighting.statistics() == pytest.approx(before)
    learned = UncertaintyWeighting()
    learned.setup(["a", "b"])
    kept = learned.log_variance["b"]
    learned.order(["b", "a"])
    assert [name for name, _ in learned.named_parameters()] == ["log_variance.b", "log_variance.a"]
    assert learned.log_variance["b"] is kept


@pytest.mark.case("model/resume_schedule")
def test_another_seed_is_refused_as_other_data_are(tmp_path):
    content = {"state_dict": {}, "optimizer": {}, "message_hub": {}, "meta": {"iter": 2, "seed": 42}}
    torch.save(content, tmp_path / "iter_2.pth")
    for seed in (None, 42):
        assert _resume_from(str(tmp_path / "iter_2.pth"), tmp_path, seed) == tmp_path / "iter_2.pth"
    with pytest.raises(
        CheckpointError, match="trained with seed 42, --seed says 7: its data would not go on"
    ):
        _resume_from(str(tmp_path / "iter_2.pth"), tmp_path, 7)
