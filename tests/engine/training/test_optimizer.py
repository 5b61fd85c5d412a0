"""Parameter groups by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flmm_detseg.engine.training.optimizer import GroupedAdamW
from flmm_detseg.errors import ConfigError


def named_model() -> nn.ModuleDict:
    model = nn.ModuleDict({"lora": nn.Linear(2, 2), "head": nn.Linear(2, 2), "frozen": nn.Linear(2, 2)})
    model["frozen"].requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.flmm_name = name
    return model


def test_each_group_steps_at_its_own_rate() -> None:
    model = named_model()
    optimizer = GroupedAdamW(model.parameters(), lr=1e-2, weight_decay=0.0, groups={"lora": {"lr_mult": 0.1}})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = {name: float((p - before[name]).abs().max()) for name, p in model.named_parameters()}
    assert moved["lora.weight"] == pytest.approx(1e-3, rel=1e-3)
    assert moved["head.weight"] == pytest.approx(1e-2, rel=1e-3)
    assert moved["frozen.weight"] == 0
    assert [group["group_name"] for group in optimizer.param_groups] == ["lora", "rest"]


def test_the_longest_match_wins() -> None:
    groups = {"weight": {"lr_mult": 2.0}, "lora.weight": {"lr_mult": 3.0}}
    optimizer = GroupedAdamW(named_model().parameters(), lr=1.0, groups=groups)
    assert {g["group_name"]: g["lr"] for g in optimizer.param_groups} == {
        "weight": 2.0, "lora.weight": 3.0, "rest": 1.0,
    }  # fmt: skip


def test_decay_of_a_group() -> None:
    optimizer = GroupedAdamW(
        named_model().parameters(), weight_decay=0.1, groups={"head": {"decay_mult": 0.0}}
    )
    assert {g["group_name"]: g["weight_decay"] for g in optimizer.param_groups} == {"head": 0.0, "rest": 0.1}


def test_the_balancer_does_not_decay() -> None:
    model = nn.ModuleDict({"balancer": nn.Linear(1, 1), "head": nn.Linear(1, 1)})
    for name, parameter in model.named_parameters():
        parameter.flmm_name = name

    def decay(groups: dict | None) -> dict[str, float]:
        optimizer = GroupedAdamW(model.parameters(), weight_decay=0.1, groups=groups)
        return {g["group_name"]: g["weight_decay"] for g in optimizer.param_groups}

    assert decay(None) == {"balancer.": 0.0, "rest": 0.1}
    assert decay({"head": {"decay_mult": 2.0}}) == {"head": 0.2, "balancer.": 0.0}
    assert decay({"balancer.": {"decay_mult": 0.5}}) == {"balancer.": 0.05, "rest": 0.1}


@pytest.mark.parametrize(
    ("groups", "named"), [({"nothing": {}}, "nothing"), ({"head": {"lr": 1.0}}, r"\['lr'\]")]
)
def test_wrong_groups_are_named(groups: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        GroupedAdamW(named_model().parameters(), groups=groups)


def test_parameters_without_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="GroundingLMM"):
        GroupedAdamW(nn.Linear(2, 2).parameters(), groups={"weight": {}})
