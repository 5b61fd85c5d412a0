"""LoRA on the convolutions of pretrained decoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft.tuners.lora import LoraLayer
from torch import nn

from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.lora.groups import compile_target, inject
from flmm_detseg.lmms.lora.layers import lora_layers
from flmm_detseg.utils.names import suggest


def add_conv_lora_to_convs(
    module: nn.Module,
    r: int = 4,
    alpha: float = 8,
    target: str | None = None,
    *,
    name: str = "conv",
    dropout: float = 0.0,
) -> tuple[str, ...]:
    """Puts PEFT's Conv2d LoRA beside the convolutions of a head: ``W0 * x + alpha / r B_1x1(A_kxk * x)``.

    Useful only where the decoder's weights are pretrained. The adapted convolutions' own weights and biases
    become buffers, which checkpoints hold; every other parameter keeps its ``requires_grad``. Grouped (also depthwise)
    convolutions are left out: A reads all channels, so the sum would be no grouped convolution any more and could not
    be merged, and a depthwise kernel has nothing to save.

    Args:
        module: A head, decoder or refiner.
        r: Rank.
        alpha: Scale times ``r``.
        target: Regular expression for whole names of convolutions within ``module``; None for all that are not grouped.
        name: Group, part of the parameters' names.
        dropout: On A's input.

    Returns:
        Names of the adapted convolutions.

    Raises:
        ConfigError: Nothing matches, a match is grouped or adapted already, or a number cannot be used.
    """
    adapted = lora_layers(module)
    convs = {
        key: child
        for key, child in module.named_modules()
        if key and isinstance(child, nn.Conv2d) and not any(key.startswith(f"{layer}.") for layer in adapted)
    }
    if target is None:
        chosen = [key for key, conv in convs.items() if conv.groups == 1]
    else:
        pattern = compile_target(target)
        chosen = [key for key in convs if pattern.fullmatch(key)]
        if grouped := [key for key in chosen if convs[key].groups > 1]:
            raise ConfigError(
                f"LoRA `target` {target!r} matches the grouped convolution `{grouped[0]}`: its low-rank part would mix "
                "all channels and could not be merged; exclude it"
            )
    if not chosen:
        raise ConfigError(f"LoRA `target` {target!r} matches no convolution{suggest(str(target), convs)}")
    inject(module, name, chosen, r=r, alpha=alpha, dropout=dropout)
    for key in chosen:
        layer = module.get_submodule(key)
        assert isinstance(layer, LoraLayer)
        _keep(layer.get_base_layer())
        _fit_geometry(layer, name)
    return tuple(chosen)


def _keep(conv: nn.Module) -> None:
    """Makes a convolution's parameters buffers that checkpoints contain, as no published weights do."""
    names = [name for name, parameter in conv.named_parameters(recurse=False) if parameter is not None]
    for name in names:
        value = getattr(conv, name).detach()
        delattr(conv, name)
        conv.register_buffer(name, value)
    conv.checkpoint_buffers = tuple(names)  # type: ignore[assignment]  # a mark of ours, no tensor


def _fit_geometry(layer: LoraLayer, name: str) -> None:
    """Gives A the base's dilation and padding mode, which PEFT leaves at their defaults (the map would grow)."""
    base, down = layer.get_base_layer(), layer.lora_A[name]
    if base.dilation == (1, 1) and base.padding_mode == "zeros":
        return
    fitted = nn.Conv2d(
        base.in_channels,
        down.out_channels,
        base.kernel_size,
        base.stride,
        base.padding,
        base.dilation,
        bias=False,
        padding_mode=base.padding_mode,
        device=down.weight.device,
        dtype=down.weight.dtype,
    )
    fitted.weight = down.weight
    layer.lora_A[name] = fitted


def add_head_lora(
    heads: Mapping[str, nn.Module], config: Mapping[str, Mapping[str, Any]]
) -> dict[str, tuple[str, ...]]:
    """LoRA on the convolutions of heads, as a config asks for it: ``dict(segmentation=dict(r=4, alpha=8))``.

    The adapted convolutions are frozen, so trained weights must come to them from a checkpoint.

    Args:
        heads: Heads by name.
        config: Per head ``r``, ``alpha``, ``target`` and ``dropout`` of :func:`add_conv_lora_to_convs`, each optional.

    Returns:
        Per head the names of its adapted convolutions; parameters are ``....lora_A.HEAD.weight``.

    Raises:
        ConfigError: There is no such head or key, or see :func:`add_conv_lora_to_convs`.
    """
    known = ("r", "alpha", "target", "dropout")
    for name, given in config.items():
        if name not in heads:
            raise ConfigError(f"`head_lora`: {name!r} is no head{suggest(name, heads)}")
        for key in given:
            if key not in known:
                raise ConfigError(f"`head_lora.{name}` has no key `{key}`{suggest(str(key), known)}")
    return {name: add_conv_lora_to_convs(heads[name], **given, name=name) for name, given in config.items()}
