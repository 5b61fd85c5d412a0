"""NaN and infinities, found in one pass and without a copy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from flmm_detseg.errors import RunError


@torch.no_grad()
def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinities; true for integers, and where there are no numbers."""
    if not tensor.is_floating_point() or tensor.is_meta or tensor.numel() == 0:
        return True
    low, high = tensor.detach().aminmax()  # both are NaN where one value is
    return bool(low.isfinite() & high.isfinite())


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinities."""
    return [name for name, tensor in tensors.items() if not is_finite(tensor)]


def require_finite(what: str, record_ids: Sequence[str], tensors: Iterable[Tensor]) -> None:
    """Refuses outputs with NaN or infinities, which a threshold or an argmax would hide.

    Args:
        what: Named in the error.
        record_ids: Of the samples.
        tensors: ``[B, ...]``, by sample.

    Raises:
        RunError: NaN or an infinity; names the samples.
    """
    for tensor in tensors:
        if not is_finite(tensor):
            broken = [name for name, own in zip(record_ids, tensor, strict=True) if not is_finite(own)]
            raise RunError(
                f"{', '.join(broken)}: the {what} hold NaN or infinities. Check the checkpoint, the weights of the LMM "
                "and the precision (float16 overflows where bfloat16 and float32 do not)"
            )
