"""From a logit of presence to a probability that can be believed, and a threshold: what all presence heads end in."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flmm_detseg.errors import ConfigError, DataError, RunError


class PresenceScore(nn.Module):
    """Base of presence heads: ``sigmoid(logit / temperature + bias)`` is the probability that there is such a thing.

    :meth:`calibrate` fits both numbers and the threshold on cases that were not trained on; checkpoints hold them.

    Args:
        keep_present: Share of the cases that are there which the threshold keeps, where it is fitted.

    Raises:
        ConfigError: It is no share.
    """

    checkpoint_buffers = ("temperature", "bias", "threshold")

    def __init__(self, keep_present: float) -> None:
        super().__init__()
        if not 0 < keep_present < 1:
            raise ConfigError(
                f"{type(self).__name__}: `keep_present` is {keep_present}; a share within (0, 1) is needed"
            )
        self.keep_present = keep_present
        self.temperature: Tensor
        self.bias: Tensor
        self.threshold: Tensor
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("bias", torch.zeros(()))
        self.register_buffer("threshold", torch.full((), 0.5))

    @property
    def fitted(self) -> bool:
        """Whether it was calibrated, ever: a fit never ends at exactly the numbers that all begin with."""
        return bool(self.temperature != 1) or bool(self.bias != 0)

    @property
    def fitted_threshold(self) -> float:
        """The probability from which on something counts as there; NaN until it was calibrated.

        The buffer holds a number all the same: checkpoints hold no NaN.
        """
        return float(self.threshold) if self.fitted else float("nan")

    def probability(self, logits: Tensor) -> Tensor:
        """Calibrated probabilities of logits, float32, of the same shape."""
        return torch.sigmoid(logits.float() / self.temperature + self.bias)

    @torch.no_grad()
    def calibrate(self, logits: Tensor, there: Tensor) -> None:
        """Fits temperature, bias and threshold on cases that were not trained on.

        The first two minimise the cross-entropy; the threshold is the probability that :attr:`keep_present` of the
        cases that are there reach.

        Args:
            logits: ``[N]``, of :meth:`forward`.
            there: bool ``[N]``.

        Raises:
            DataError: All are there, or none is.
            RunError: Logits of what is there are no larger than those of the rest: nothing was learned.
        """
        if there.all() or not there.any():
            raise DataError(
                f"presence cannot be calibrated on {len(there)} cases of which {int(there.sum())} are there; "
                "give cases of both kinds"
            )
        slope, bias = fit_sigmoid(logits.double(), there)
        if slope <= 0:
            raise RunError(
                f"the presence head's logits do not grow with presence on {len(there)} cases that it was not trained "
                "on; train longer, or on more data"
            )
        self.temperature.fill_(1 / slope)
        self.bias.fill_(bias)
        found = self.probability(logits[there])
        self.threshold.copy_(torch.quantile(found, 1 - self.keep_present, interpolation="lower"))


def fit_sigmoid(logits: Tensor, there: Tensor, steps: int = 50) -> tuple[float, float]:
    """Slope a and bias b whose ``sigmoid(a * logit + b)`` has the lowest cross-entropy, by Newton's method.

    Args:
        logits: float64 ``[N]``.
        there: bool ``[N]``, both values occurring.
        steps: Of the iteration, at most.

    Returns:
        ``(a, b)``.

    Source: Platt, Probabilistic Outputs for Support Vector Machines, 1999, with his targets, which keep both numbers
    finite where the classes are separable.
    """
    positives = int(there.sum())
    high, low = (positives + 1) / (positives + 2), 1 / (len(there) - positives + 2)
    target = torch.where(there, high, low).to(logits)
    features = torch.stack([logits, torch.ones_like(logits)], dim=1)
    weights = torch.zeros(2, dtype=logits.dtype, device=logits.device)

    def loss(candidate: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(features @ candidate, target)

    for _ in range(steps):
        found = torch.sigmoid(features @ weights)
        gradient = features.T @ (found - target) / len(logits)
        curvature = (features.T * (found * (1 - found))) @ features / len(logits)
        step = torch.linalg.solve(curvature + 1e-9 * torch.eye(2).to(curvature), gradient)
        # Full steps overshoot where all probabilities are near 0 or 1.
        while loss(weights - step) > loss(weights) and step.abs().max() > 1e-12:
            step = step / 2
        weights = weights - step
        if step.abs().max() < 1e-10:
            break
    return float(weights[0]), float(weights[1])
