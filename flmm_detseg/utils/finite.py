"""Numbers that are no numbers: NaN and infinities, found in one pass and without a copy."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


@torch.no_grad()
def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinities; true for integers."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    low, high = tensor.detach().aminmax()  # both are NaN where one value is
    return bool(low.isfinite() & high.isfinite())


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinities."""
    return [name for name, tensor in tensors.items() if not is_finite(tensor)]
