"""Buffers that must keep float32 whatever the model is cast to."""

from __future__ import annotations

from torch import Tensor, nn

# Rotary frequencies: rounded to bfloat16 they are off by whole turns at positions of some hundreds. transformers'
# from_pretrained keeps them in float32; `module.bfloat16()` (which DeepSpeed calls) does not.
_SUFFIX = "inv_freq"


def float32_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The rotary frequencies of a model by name, as they are now."""
    return {name: buffer for name, buffer in module.named_buffers() if name.endswith(_SUFFIX)}


def restore_buffers(module: nn.Module, before: dict[str, Tensor]) -> None:
    """Puts back the values of :func:`float32_buffers` where a cast has changed their precision."""
    owners = dict(module.named_modules())
    for name, buffer in float32_buffers(module).items():
        old = before[name]
        if buffer.dtype != old.dtype and not old.is_meta:
            path, _, attribute = name.rpartition(".")
            setattr(owners[path], attribute, old.to(buffer.device))
