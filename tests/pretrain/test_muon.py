"""Our Muon takes the steps of torch's, which computes them in bfloat16."""

from __future__ import annotations

import pytest
import torch

from flmm_detseg.pretrain.muon import Float32Muon, orthogonalised


@pytest.mark.parametrize("shape", [(24, 24), (40, 16), (16, 40)])
def test_steps_are_those_of_torch(shape):
    torch.manual_seed(0)
    start, grads = torch.randn(shape), [torch.randn(shape) for _ in range(4)]
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    unused = torch.nn.Parameter(start.clone())
    pairs = [
        (ours, Float32Muon([ours, unused], lr=0.02, weight_decay=0.1)),
        (theirs, torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1)),
    ]
    for grad in grads:
        for parameter, optimizer in pairs:
            parameter.grad = grad.clone()
            optimizer.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.02 * moved  # bfloat16
    assert torch.equal(unused, start)


def test_singular_values_come_near_one_and_a_closure_is_called():
    values = torch.linalg.svdvals(
        orthogonalised(torch.randn(20, 50, generator=torch.Generator().manual_seed(1)))
    )
    assert ((values > 0.6) & (values < 1.3)).all()
    assert not orthogonalised(torch.zeros(3, 4)).any()
    parameter = torch.nn.Parameter(torch.ones(3, 3))

    def loss() -> float:
        parameter.grad = None
        value = parameter.square().sum()
        value.backward()
        return float(value)

    assert Float32Muon([parameter], lr=0.1, weight_decay=0.0).step(loss) == 9.0
    assert parameter.mean() < 1
