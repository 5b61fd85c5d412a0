"""LoRA layers inside of a module: find them, switch them off, choose which get a gradient.

The layers are PEFT's; a group is one PEFT adapter name, so a parameter is called ``....q_proj.lora_A.GROUP.weight`` and
the untouched weight beside it ``....q_proj.base_layer.weight``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from peft.tuners.lora import LoraLayer
from torch import nn

from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.fair_lock import exclusive
from flmm_detseg.utils.names import suggest

_GROUP = re.compile(r"(?:^|\.)lora_[AB]\.([^.]+)\.")


def lora_group_of(parameter_name: str) -> str | None:
    """Group a parameter belongs to, None where it is no LoRA parameter.

    Args:
        parameter_name: Full name as ``named_parameters`` gives it.

    Returns:
        Name of the group.
    """
    found = _GROUP.search(parameter_name)
    return found.group(1) if found else None


def lora_layers(module: nn.Module) -> dict[str, LoraLayer]:
    """Every adapted layer of a module by name, in module order."""
    return {name: child for name, child in module.named_modules() if isinstance(child, LoraLayer)}


def lora_switches(modules: Mapping[str, nn.Module]) -> list[tuple[Any, ...]]:
    """What LoRA layers add, but for their weights: a line per layer with everything that switches it.

    Args:
        modules: By name, such as ``dict(model.named_modules())``; others than LoRA layers have no line.

    Returns:
        Per LoRA layer its name, whether it is off, active and merged groups, and their factors.
    """
    return [
        (name, layer.disable_adapters, layer.active_adapters, layer.merged_adapters, layer.scaling)
        for name, layer in modules.items()
        if isinstance(layer, LoraLayer)
    ]


def lora_parameters(module: nn.Module) -> dict[str, list[nn.Parameter]]:
    """LoRA parameters of a module by group."""
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if (group := lora_group_of(name)) is not None:
            groups.setdefault(group, []).append(parameter)
    return groups


@contextmanager
def lora_off(module: nn.Module) -> Iterator[None]:
    """Context in which adapted layers compute with their base weights only, bit for bit. May be nested.

    Requests of other threads wait, see :func:`~flmm_detseg.lmms.fair_lock.exclusive`.
    """
    with exclusive(module), _disabled({layer: True for layer in lora_layers(module).values()}):
        yield


@contextmanager
def lora_gradients(module: nn.Module, groups: Collection[str]) -> Iterator[None]:
    """Context in which a forward pass builds no graph to the LoRA parameters of other groups.

    All groups stay part of the computation. Parameters of ``groups`` keep their ``requires_grad``; the others get
    theirs back on leaving, so the backward pass may happen outside. With gradient checkpointing pass
    :func:`recompute_contexts`, because the repeated forward happens in the backward pass.

    Args:
        module: Holds LoRA layers.
        groups: Names of groups; empty for none.

    Raises:
        ConfigError: Unknown group; names the nearest.
    """
    known = lora_parameters(module)
    for group in groups:
        if group not in known:
            raise ConfigError(f"there is no LoRA group {group!r}{suggest(group, known)}")
    others = [p for name, parameters in known.items() if name not in groups for p in parameters]
    with _requires_grad({parameter: False for parameter in others}):
        yield


def recompute_contexts(
    module: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """``context_fn`` of gradient checkpointing: the repeated forward sees LoRA as the first one did.

    Use: ``gradient_checkpointing_enable({"use_reentrant": False, "context_fn": partial(recompute_contexts, model)})``.

    Args:
        module: Holds the LoRA layers.

    Returns:
        Contexts of the first forward (nothing to do) and of its repetition.
    """
    layers = {layer: layer.disable_adapters for layer in lora_layers(module).values()}
    gradients = {p: p.requires_grad for parameters in lora_parameters(module).values() for p in parameters}
    return nullcontext(), _replay(layers, gradients)


@contextmanager
def _replay(layers: dict[LoraLayer, bool], gradients: dict[nn.Parameter, bool]) -> Iterator[None]:
    with _disabled(layers), _requires_grad(gradients):
        yield


@contextmanager
def _disabled(wanted: dict[LoraLayer, bool]) -> Iterator[None]:
    # Not PEFT's `enable_adapters`: that one also rewrites `requires_grad` of every LoRA parameter.
    before = {layer: layer.disable_adapters for layer in wanted}
    try:
        for layer, off in wanted.items():
            layer._disable_adapters = off
        yield
    finally:
        for layer, off in before.items():
            layer._disable_adapters = off


@contextmanager
def _requires_grad(wanted: dict[nn.Parameter, bool]) -> Iterator[None]:
    before = {parameter: parameter.requires_grad for parameter in wanted}
    try:
        for parameter, on in wanted.items():
            parameter.requires_grad_(on)
        yield
    finally:
        for parameter, on in before.items():
            parameter.requires_grad_(on)
