"""Muon in float32, for CPUs that only emulate bfloat16: there torch's own takes longer than the rest of a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

# Coefficients of the quintic iteration, as in torch.optim.Muon.
_A, _B, _C = 3.4445, -4.775, 2.0315


def orthogonalised(matrix: Tensor, num_steps: int = 5, eps: float = 1e-7) -> Tensor:
    """The nearest matrix with singular values near 1, by Newton-Schulz iteration in the matrix's own precision.

    Args:
        matrix: ``[M, N]``.
        num_steps: Iterations.
        eps: Least norm that is divided by.

    Returns:
        ``[M, N]``.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    found = matrix.T if tall else matrix
    found = found / found.norm().clamp(min=eps)
    for _ in range(num_steps):
        gram = found @ found.T
        found = torch.addmm(found, torch.addmm(gram, gram, gram, beta=_B, alpha=_C), found, beta=_A)
    return found.T if tall else found


class Float32Muon(torch.optim.Optimizer):
    """The update of ``torch.optim.Muon`` (Nesterov momentum, orthogonalised, decoupled weight decay), in float32.

    Args:
        params: 2-D parameters.
        lr: Learning rate; tall matrices get it times ``sqrt(rows / columns)``.
        weight_decay: Of the parameters, times the learning rate.
        momentum: Of the gradients' running average.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch overloads it
        """Updates the parameters that have a gradient.

        Args:
            closure: Computes the loss anew; None: the gradients are there.

        Returns:
            The closure's loss, if there is one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["average"] = torch.zeros_like(parameter)
                average = state["average"].lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonalised(parameter.grad.lerp(average, group["momentum"]))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                rows, cols = parameter.shape
                parameter.add_(update, alpha=-group["lr"] * math.sqrt(max(1.0, rows / cols)))
        return loss
