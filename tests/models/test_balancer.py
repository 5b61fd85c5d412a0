"""Weights and gradients of several tasks, against independent formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from flmm_detseg.errors import ConfigError
from flmm_detseg.models.balancer import (
    FixedWeighting,
    GradNormWeighting,
    TaskBalancer,
    UncertaintyWeighting,
    order_generator,
    pcgrad_coefficients,
)
from flmm_detseg.structures import HiddenRows, LMMStates


class TwoTasks(nn.Module):
    """A shared layer, and one head per task after the balancer's gates."""

    def __init__(self, balancer: TaskBalancer) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared = nn.Linear(4, 6)
        self.heads = nn.ModuleDict({name: nn.Linear(6, 2) for name in ("a", "b", "c")})
        self.balancer = balancer
        balancer.setup(list(self.heads))

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        states = LMMStates(logits=[self.shared(x).tanh()])
        targets = {"a": 1.0, "b": -1.0, "c": 0.3}
        return {
            name: (head(self.balancer.gate(name, states).logits[0]) - targets[name]).square().mean()
            for name, head in self.heads.items()
        }

    def objective(self, x: Tensor) -> tuple[Tensor, dict[str, float]]:
        terms, figures = self.balancer(self.losses(x), list(self.shared.parameters()))
        return sum(terms.values()), figures


def inputs() -> Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


def reference_pcgrad(gradients: list[Tensor], generator: torch.Generator) -> Tensor:
    """Algorithm 1 of the paper on explicit vectors."""
    total = torch.zeros_like(gradients[0])
    for i in range(len(gradients)):
        own = gradients[i].clone()
        for j in torch.randperm(len(gradients), generator=generator).tolist():
            if j != i and own @ gradients[j] < 0:
                own = own - (own @ gradients[j]) / (gradients[j] @ gradients[j]) * gradients[j]
        total += own
    return total


def test_pcgrad_coefficients_equal_projected_vectors() -> None:
    generator = torch.Generator().manual_seed(3)
    conflicts = 0
    for seed in range(20):
        gradients = list(torch.randn(4, 3, generator=generator, dtype=torch.float64))
        gram = torch.stack([torch.stack([a @ b for b in gradients]) for a in gradients])
        conflicts += int((gram < 0).any())
        found = pcgrad_coefficients(gram, torch.Generator().manual_seed(seed))
        combined = sum(c * g for c, g in zip(found, gradients))
        torch.testing.assert_close(combined, reference_pcgrad(gradients, torch.Generator().manual_seed(seed)))
    assert conflicts > 10


def test_pcgrad_changes_shared_gradients_only() -> None:
    plain = TwoTasks(TaskBalancer())
    plain.objective(inputs())[0].backward()
    model = TwoTasks(TaskBalancer(gradients="pcgrad", seed=5))
    total, figures = model.objective(inputs())
    total.backward()
    for mine, theirs in zip(model.heads.parameters(), plain.heads.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)
    explicit = TwoTasks(TaskBalancer())
    gradients = []
    for loss in explicit.losses(inputs()).values():
        parts = torch.autograd.grad(loss, list(explicit.shared.parameters()), retain_graph=True)
        gradients.append(torch.cat([part.reshape(-1) for part in parts]))
    wanted = reference_pcgrad(gradients, order_generator(5, 0))
    found = torch.cat([p.grad.reshape(-1) for p in model.shared.parameters()])
    torch.testing.assert_close(found, wanted)
    assert any(abs(figures[f"pcgrad_{name}"] - 1) > 1e-3 for name in "abc"), (
        "no conflict: the test shows nothing"
    )


def test_the_order_of_projections_follows_seed_and_step() -> None:
    def figures(model: TwoTasks) -> list[float]:
        found = model.objective(inputs())[1]
        return [found[f"pcgrad_{name}"] for name in "abc"]

    model = TwoTasks(TaskBalancer(gradients="pcgrad", seed=5))
    curve = [figures(model) for _ in range(12)]
    assert len({tuple(step) for step in curve}) > 1, "one order only: the test shows nothing"
    resumed = TwoTasks(TaskBalancer(gradients="pcgrad", seed=5))
    resumed.balancer.num_steps.fill_(6)
    assert [figures(resumed) for _ in range(6)] == curve[6:]
    other = TwoTasks(TaskBalancer(gradients="pcgrad", seed=6))
    assert [figures(other) for _ in range(12)] != curve


def test_gate_without_conflict_is_the_sum() -> None:
    model = TwoTasks(TaskBalancer(gradients="pcgrad"))
    losses = model.losses(inputs())
    terms, _ = model.balancer({"a": losses["a"]}, list(model.shared.parameters()))
    sum(terms.values()).backward()
    assert model.shared.weight.grad.abs().sum() > 0
    assert all(gate.scale == 1.0 for gate in model.balancer._gates.values())


def test_uncertainty_formula_and_gradient() -> None:
    weighting = UncertaintyWeighting(regression=["b"])
    weighting.setup(["a", "b"])
    with torch.no_grad():
        weighting.log_variance["a"].fill_(0.5)
        weighting.log_variance["b"].fill_(9.0)  # clamped to 3
    terms = weighting({"a": torch.tensor(2.0), "b": torch.tensor(4.0)}, [])
    assert float(terms["a"]) == pytest.approx(math.exp(-0.5) * 2 + 0.25)
    assert float(terms["b"]) == pytest.approx(0.5 * math.exp(-3) * 4 + 1.5)
    sum(terms.values()).backward()
    assert float(weighting.log_variance["a"].grad) == pytest.approx(-math.exp(-0.5) * 2 + 0.5)


def test_gradnorm_pulls_towards_equal_rates() -> None:
    weighting = GradNormWeighting(alpha=1.0)
    weighting.setup(["a", "b"])
    shared = nn.Parameter(torch.tensor([1.0, 1.0]))

    def losses(scale: float) -> dict[str, Tensor]:
        return {"a": 10 * scale * (shared[0] - 0).square(), "b": (shared[1] - 0).square()}

    first = weighting(losses(1.0), [shared])
    assert weighting.first_losses.tolist() == [10.0, 1.0]
    # At the start the rates are equal; norms are 20 and 2, weights 1: the target is their mean 11.
    assert float(first["gradnorm"]) == pytest.approx(abs(20 - 11) + abs(2 - 11))
    first["gradnorm"].backward()
    assert weighting.logits.grad[0] > 0 > weighting.logits.grad[1], "the louder task must be turned down"
    assert shared.grad is None, "GradNorm's own loss must not train the model"
    # A task that has fallen behind (relative loss 1 against 0.1) is asked for a larger norm.
    with torch.no_grad():
        shared.copy_(torch.tensor([math.sqrt(0.1), 1.0]))
    later = weighting({"a": 10 * shared[0].square(), "b": shared[1].square()}, [shared])
    norms, rates = torch.tensor([20 * math.sqrt(0.1), 2.0]), torch.tensor([0.1, 1.0])
    target = norms.mean() * rates / rates.mean()
    assert float(later["gradnorm"]) == pytest.approx(float((norms - target).abs().sum()), rel=1e-5)


def test_gradnorm_formula_and_gradient() -> None:
    weighting = GradNormWeighting(alpha=1.5)
    weighting.setup(["a", "b", "c"])
    first = torch.tensor([10.0, 1.0, 4.0])
    with torch.no_grad():
        weighting.logits.copy_(torch.tensor([0.3, -0.2, 0.1]))
        weighting.first_losses.copy_(first)
    shared = nn.Parameter(torch.tensor([0.5, 1.0, 1.5]))
    losses = {name: factor * x.square() for name, factor, x in zip("abc", (10.0, 1.0, 2.0), shared)}
    weighting(losses, [shared])["gradnorm"].backward()
    term = weighting(losses, [shared])["gradnorm"]

    logits = torch.tensor([0.3, -0.2, 0.1], requires_grad=True)
    own = 3 * logits.softmax(0) * torch.tensor([10.0, 2.0, 6.0])
    rates = torch.tensor([2.5, 1.0, 4.5]) / first
    target = own.mean() * (rates / rates.mean()) ** 1.5
    expected = (own - target.detach()).abs().sum()  # the target is a constant to the gradient
    expected.backward()
    torch.testing.assert_close(term, expected)
    torch.testing.assert_close(weighting.logits.grad, logits.grad)


def test_fixed_weights() -> None:
    weighting = FixedWeighting({"a": 0.25})
    weighting.setup(["a", "b"])
    terms = weighting({"a": torch.tensor(2.0), "b": torch.tensor(3.0)}, [])
    assert {name: float(value) for name, value in terms.items()} == {"a": 0.5, "b": 3.0}


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: FixedWeighting({"x": 1.0}).setup(["a"]), "x"),
        (lambda: FixedWeighting({"a": -1.0}).setup(["a"]), "negative"),
        (lambda: UncertaintyWeighting(regression=["x"]).setup(["a"]), "x"),
        (lambda: TaskBalancer(gradients="median"), "median"),
    ],
)
def test_wrong_settings_are_named(build, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        build()


def test_an_uncertainty_at_its_limit_comes_back() -> None:
    weighting = UncertaintyWeighting(limit=3.0)
    weighting.setup(["a"])
    with torch.no_grad():
        weighting.log_variance["a"].fill_(-3.5)
    assert weighting.statistics()["weight_a"] == pytest.approx(math.exp(3.0)), (
        "what is used, not what is stored"
    )

    def gradient(loss: float) -> float:
        weighting.log_variance["a"].grad = None
        sum(weighting({"a": torch.tensor(loss)}, []).values()).backward()
        return float(weighting.log_variance["a"].grad)

    assert gradient(50.0) == pytest.approx(0.5 - math.exp(3.0) * 50.0, rel=1e-5), "a large loss leads back"
    assert gradient(0.0) == 0.0, "further out goes nothing"


def test_hidden_rows_keep_their_layers_after_a_gate() -> None:
    balancer = TaskBalancer(gradients="pcgrad")
    balancer.setup(["a", "b"])
    rows = HiddenRows(torch.randn(2, 3, 4, requires_grad=True), torch.zeros(3, dtype=torch.long), (2, 7))
    gated = balancer.gate("a", LMMStates(hidden=[rows])).hidden[0]
    assert gated.layers == (2, 7)
    assert torch.equal(gated.states, rows.states)
    assert gated.states.grad_fn is not None
