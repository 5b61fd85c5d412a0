"""The weight change that LoRA amounts to: its distance from the base model, and merging."""

from __future__ import annotations

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from flmm_detseg.errors import ConfigError, RunError
from flmm_detseg.lmms.fair_lock import exclusive
from flmm_detseg.lmms.lora.conv_lora import ConvLoRADown
from flmm_detseg.lmms.lora.layers import lora_layers

# Largest accepted difference of a merged layer, relative to its largest output.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}


def lora_product_penalty(module: nn.Module) -> Tensor:
    """Squared Frobenius distance of all adapted weights from the base model's: L2-SP for LoRA.

    Per layer ``||scale * B A||^2 = tr((B^T B)(A A^T))``, which costs r x r, not d x d. Groups on one layer count as
    one change. Conv-LoRA counts with its linear path ``B A``: its experts depend on the input and have no weight.

    Args:
        module: Holds LoRA layers (an adapter, a head).

    Returns:
        Scalar, float32, with gradient to A and B.

    Raises:
        ConfigError: There is no LoRA layer.

    Source: Li et al., Explicit Inductive Bias for Transfer Learning (L2-SP), arXiv 1802.01483, on the product.
    """
    layers = lora_layers(module)
    if not layers:
        raise ConfigError("no LoRA layer to penalise; the L2-SP penalty needs an LMM (or head) with LoRA")
    parts = []
    for layer in layers.values():
        down = torch.cat([_flat(layer.lora_A[group].weight) for group in layer.lora_A])
        up = torch.cat(
            [_flat(layer.lora_B[group].weight) * layer.scaling[group] for group in layer.lora_B], dim=1
        )
        parts.append(((up.T @ up) * (down @ down.T)).sum())
    return torch.stack([part.to(parts[0].device) for part in parts]).sum()


@torch.no_grad()
def merge_lora(module: nn.Module) -> int:
    """Adds every LoRA product to its base weight and takes the LoRA layers out. Nothing changes if a check fails.

    Args:
        module: Holds LoRA layers; they are replaced by their base layers.

    Returns:
        Number of merged layers.

    Raises:
        ConfigError: There is nothing to merge, or a layer is Conv-LoRA, which depends on the input.
        RunError: A merged layer would differ from the unmerged one by more than rounding.
    """
    layers = lora_layers(module)
    if not layers:
        raise ConfigError("no LoRA layer to merge")
    for name, layer in layers.items():
        if conv := [group for group, down in layer.lora_A.items() if isinstance(down, ConvLoRADown)]:
            raise ConfigError(
                f"`{name}`: group {conv[0]!r} is Conv-LoRA, whose change depends on the input and has no "
                "weight to merge; keep the LoRA layers, or train with kind='lora'"
            )
    for name, layer in layers.items():
        _check_merge(name, layer)
    with exclusive(module):
        for name, layer in layers.items():
            base = layer.get_base_layer()
            base.weight.copy_(_merged_weight(layer))
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, base)
    return len(layers)


def _merged_weight(layer: LoraLayer) -> Tensor:
    weight = layer.get_base_layer().weight
    total = weight.detach().float()
    for group in layer.lora_A:
        product = _flat(layer.lora_B[group].weight) @ _flat(layer.lora_A[group].weight)
        total = total + layer.scaling[group] * product.view_as(weight)
    return total.to(weight.dtype)


def _check_merge(name: str, layer: LoraLayer) -> None:
    """Compares the layer before and after on a probe, its own forward against the merged weight."""
    base, merged = layer.get_base_layer(), _merged_weight(layer)
    if merged.is_meta:
        return
    generator = torch.Generator().manual_seed(0)
    side = 1 if isinstance(base, nn.Linear) else 2 * max(base.kernel_size) * max(base.dilation)
    shape = (4, base.in_features) if side == 1 else (1, base.in_channels, side, side)
    probe = torch.randn(shape, generator=generator).to(merged.device, merged.dtype)
    was_training = layer.training
    layer.eval()
    try:
        before = layer(probe).float()
    finally:
        layer.train(was_training)
    after = torch.func.functional_call(base, {"weight": merged}, (probe,)).float()
    difference, scale = (after - before).abs().max(), before.abs().max().clamp(min=1e-6)
    if not difference <= _TOLERANCE[merged.dtype] * scale:
        raise RunError(
            f"`{name}`: merged and unmerged layer differ by {float(difference / scale):.2g} of the output in "
            f"{merged.dtype}; merge a float32 model (nothing was changed)"
        )


def _flat(weight: Tensor) -> Tensor:
    """As a float32 matrix: a convolution's A is ``[r, in * kernel]``, its 1 x 1 B ``[out, r]``."""
    return weight.flatten(1).float()
