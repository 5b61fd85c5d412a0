"""The loss that keeps a gate from sending everything to one expert."""

from __future__ import annotations

from torch import Tensor


def load_balance(probabilities: Tensor, kept: Tensor) -> Tensor:
    """Balance loss of a gate: M times the sum over experts of (share of rows sent to it) x (mean probability).

    Args:
        probabilities: Of the gate, ``[B, M]``; rows are what it sends (images, tokens), at least one.
        kept: ``[B, M]``, 1 where the row is sent to the expert.

    Returns:
        Scalar; ``top_k`` when everything is spread evenly, more otherwise.

    Source: Switch Transformers, arXiv 2101.03961, equation 4.
    """
    return probabilities.shape[1] * (kept.mean(0).detach() * probabilities.mean(0)).sum()
