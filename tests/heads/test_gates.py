from __future__ import annotations

import math

import pytest
import torch

from flmm_detseg.errors import ConfigError
from flmm_detseg.heads.gates import GATES, build_gate
from flmm_detseg.heads.task_rows import TASKS

B, L, C = 3, 4, 6
TASKS_OF_BATCH = ["detection", "joint", "segmentation"]
LEARNED = sorted(set(GATES) - {"none"})


def make_maps(seed=0) -> torch.Tensor:
    return torch.randn(B, L, C, 5, 7, generator=torch.Generator().manual_seed(seed))


def make_gate(name, **changes):
    torch.manual_seed(0)
    return build_gate(name, L, C, **changes)


def test_none_is_the_last_layer_bit_for_bit():
    maps = make_maps()
    gate = make_gate("none")
    assert torch.equal(gate(maps, TASKS_OF_BATCH), maps[:, -1])
    assert gate.statistics() == {"share_0": 0, "share_1": 0, "share_2": 0, "share_3": 1, "entropy": 0}
    assert not list(gate.parameters())


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_gates_start_as_the_identity(name, temperature):
    maps = make_maps()
    gate = make_gate(name, temperature=temperature)
    assert gate.statistics() == {}
    torch.testing.assert_close(gate(maps, TASKS_OF_BATCH), maps[:, -1], rtol=0, atol=1e-3)
    figures = gate.statistics()
    assert figures["share_3"] == pytest.approx(1 - 1e-4, abs=3e-5)
    for index in range(L - 1):
        assert figures[f"share_{index}"] == pytest.approx(1e-4 / 3, rel=0.3)


@pytest.mark.parametrize("name", LEARNED)
def test_every_tensor_and_every_layer_gets_a_gradient_at_the_start(name):
    maps = make_maps().requires_grad_()
    gate = make_gate(name)
    (gate(maps, TASKS_OF_BATCH) * make_maps(1)[:, 0]).sum().backward()
    for parameter in gate.parameters():
        assert parameter.grad.abs().sum() > 0
    assert (maps.grad.abs().sum((0, 2, 3, 4)) > 0).all()
    logits = gate.logits.grad if name == "static" else gate.output.bias.grad
    assert (logits != 0).all()


@pytest.mark.parametrize("name", LEARNED)
def test_gates_learn_to_read_another_layer(name):
    maps, gate = make_maps(), make_gate(name)
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.02)
    for _ in range(150):
        loss = (gate(maps, TASKS_OF_BATCH) - maps[:, 1]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    gate(maps, TASKS_OF_BATCH)
    assert gate.statistics()["share_1"] > 0.8


@pytest.mark.parametrize(("name", "by_task", "by_input"), [
    ("static", False, False),
    ("task", True, False),
    ("dynamic", True, True),
    ("channel", False, True),
    ("spatial", False, True),
])  # fmt: skip
def test_what_gates_look_at(name, by_task, by_input):
    gate = make_gate(name, initial_share=0.5)
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    maps = make_maps()
    shares = gate.shares(maps, ["detection"] * B)
    assert (not torch.equal(shares, gate.shares(maps, ["vqa"] * B))) == by_task
    assert (not torch.equal(shares, gate.shares(make_maps(1), ["detection"] * B))) == by_input
    if name == "channel":
        assert ((shares > 0) & (shares < 1)).all()
    else:
        torch.testing.assert_close(shares.sum(1), torch.ones_like(shares[:, 0]))
    assert shares.shape[2:] == {"channel": (C, 1, 1), "spatial": (1, 5, 7)}.get(name, (1, 1, 1))


def test_statistics_follow_the_formula():
    gate = make_gate("static", temperature=0.5)
    with torch.no_grad():
        gate.logits.copy_(torch.tensor([0.0, 0.5, 1.0, -0.5]))
    gate(make_maps(), TASKS_OF_BATCH)
    raw = [math.exp(value / 0.5) for value in (0.0, 0.5, 1.0, -0.5)]
    shares = [value / sum(raw) for value in raw]
    figures = gate.statistics()
    assert [figures[f"share_{index}"] for index in range(L)] == pytest.approx(shares)
    assert figures["entropy"] == pytest.approx(-sum(share * math.log(share) for share in shares))


@pytest.mark.parametrize("name", LEARNED)
def test_half_precision_maps_are_mixed_in_float32(name):
    gate, maps = make_gate(name, initial_share=0.3), make_maps()
    expected = gate(maps.bfloat16().float(), TASKS_OF_BATCH)
    mixed = gate(maps.bfloat16(), TASKS_OF_BATCH)
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(mixed, expected.bfloat16())


def test_one_layer_alone_has_the_whole_share():
    for name in set(GATES) - {"channel"}:
        maps = make_maps()[:, :1]
        assert torch.equal(build_gate(name, 1, C)(maps, TASKS_OF_BATCH), maps[:, 0])


def test_settings_that_cannot_be():
    with pytest.raises(ConfigError, match="did you mean `static`"):
        build_gate("statik", L, C)
    with pytest.raises(ConfigError, match="temperature=0"):
        build_gate("static", L, C, temperature=0)
    with pytest.raises(ConfigError, match="initial_share=1"):
        build_gate("static", L, C, initial_share=1)
    assert set(TASKS_OF_BATCH) <= set(TASKS)
