"""LoRA groups of an LMM: which linears of which part, at which rank, under which name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

from peft import LoraConfig
from peft.tuners import lora
from peft.tuners.lora import LoraLayer
from torch import nn

from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.added.added_tokens import is_added
from flmm_detseg.lmms.family import LEAVES, LMMFacts
from flmm_detseg.lmms.lora.conv_lora import ConvLoRADown
from flmm_detseg.lmms.lora.layers import lora_group_of, lora_layers
from flmm_detseg.utils.names import suggest


class Adaptable(Protocol):
    """What LoRA groups are put into: an LMM adapter."""

    model: nn.Module
    facts: LMMFacts
    frozen: bool
    trains_base: bool
    lora_groups: Mapping[str, LoRAGroup]


# What a part's group is unless its config says otherwise.
_PART_DEFAULTS: dict[str, dict[str, Any]] = {
    "vision": {"r": 8, "alpha": 32.0, "target": "qkv"},
    "llm": {"r": 16, "alpha": 64.0, "target": "attention"},
    "projector": {"r": 16, "alpha": 64.0, "target": "all-linear"},
}


@dataclass(frozen=True)
class LoRAGroup:
    """One set of LoRA weights; several groups may share linears (one per task, say), their changes add up.

    Attributes:
        name: Part of the parameters' names: ``....q_proj.lora_A.NAME.weight``.
        part: Part of the LMM: ``"vision"``, ``"llm"`` or ``"projector"``.
        r: Rank.
        alpha: The change is ``alpha / r B A``.
        dropout: On A's input while training.
        target: ``"qkv"``, ``"attention"``, ``"all-linear"``, a regular expression for whole names of linears within
            the part, e.g. ``r".*layers\\.(4|5)\\..*_proj"``, or a list of last names, e.g. ``["q_proj", "v_proj"]``.
        kind: ``"lora"`` or, in the vision tower, ``"conv_lora"`` (:mod:`flmm_detseg.lmms.lora.conv_lora`).
        num_experts: Of Conv-LoRA.
        top_k: Experts of Conv-LoRA an image is sent to.
        balance_weight: Of Conv-LoRA's balance loss.

    Raises:
        ConfigError: A value cannot be used.
    """

    name: str
    part: str
    r: int = 16
    alpha: float = 64.0
    dropout: float = 0.0
    target: str | Sequence[str] = "attention"
    kind: str = "lora"
    num_experts: int = 8
    top_k: int = 1
    balance_weight: float = 0.01

    def __post_init__(self) -> None:
        where = f"LoRA group {self.name!r}"
        if not re.fullmatch(r"[A-Za-z_]\w*", self.name):
            raise ConfigError(f"{where}: a name has letters, digits and underscores only")
        _check_numbers(where, self.r, self.alpha, self.dropout)
        if self.kind not in ("lora", "conv_lora"):
            raise ConfigError(f"{where}: `kind` is {self.kind!r}; allowed: lora, conv_lora")
        if self.kind == "conv_lora" and self.part != "vision":
            raise ConfigError(f"{where}: conv_lora needs a map of patches, so `part` must be 'vision'")
        if not 1 <= self.top_k <= self.num_experts:
            raise ConfigError(
                f"{where}: `top_k` is {self.top_k}; 1..{self.num_experts} (`num_experts`) are possible"
            )
        if self.balance_weight < 0:
            raise ConfigError(f"{where}: `balance_weight` is {self.balance_weight}; 0 or more is needed")
        if isinstance(self.target, str):
            if self.target not in LEAVES:
                compile_target(self.target)
            return
        names = tuple(self.target) if isinstance(self.target, Sequence) else ()
        if not names or not all(isinstance(name, str) and name for name in names):
            raise ConfigError(
                f"{where}: `target` is {self.target!r}; one of {', '.join(LEAVES)}, a regular expression, or a list "
                "of linears' names such as ['q_proj', 'v_proj']"
            )
        object.__setattr__(self, "target", names)


def lora_groups(config: Mapping[str, Mapping[str, Any]]) -> tuple[LoRAGroup, ...]:
    """Groups of an adapter's config key ``lora``.

    Args:
        config: Per group its fields, e.g. ``dict(vision=dict(r=8, alpha=32, target="qkv"), llm=dict())``. A group named
            like a part belongs to it; others say ``part``. Missing fields take the part's defaults: vision r 8,
            alpha 32, qkv; llm r 16, alpha 64, attention; projector r 16, alpha 64, all-linear.

    Returns:
        The groups, in the order of the config.

    Raises:
        ConfigError: Unknown key or part, or a value that cannot be used.
    """
    known = [item.name for item in fields(LoRAGroup) if item.name != "name"]
    groups = []
    for name, given in config.items():
        for key in given:
            if key not in known:
                raise ConfigError(f"`lora.{name}` has no key `{key}`{suggest(str(key), known)}")
        part = given.get("part", name)
        if part not in _PART_DEFAULTS:
            raise ConfigError(
                f"`lora.{name}`: part {part!r} is unknown{suggest(str(part), _PART_DEFAULTS)}; "
                "a group with a name of its own states `part`"
            )
        groups.append(LoRAGroup(name=name, **{**_PART_DEFAULTS[part], **given, "part": part}))
    return tuple(groups)


def add_lora(adapter: Adaptable, groups: Sequence[LoRAGroup]) -> dict[str, tuple[str, ...]]:
    """Injects LoRA groups into an adapter's LMM. The answer stays the same bit for bit, B being zero.

    All base parameters are frozen, the LoRA ones trainable and float32, and the adapter no longer switches autograd
    off.

    Args:
        adapter: Its ``model`` is changed in place.
        groups: With names that the adapter does not have yet.

    Returns:
        Per group the names of its linears within ``adapter.model``.

    Raises:
        ConfigError: A target matches no linear (names the nearest), a part or name cannot be used; nothing is changed.
    """
    targets: dict[str, list[str]] = {}
    for group in groups:
        if group.name in adapter.lora_groups or group.name in targets:
            raise ConfigError(f"LoRA group {group.name!r} is there already; names must differ")
        several = len(adapter.facts.parts["vision"]) > 1
        if group.kind == "conv_lora" and (several or adapter.facts.vision.grid is None):
            why = "this LMM has several towers" if several else "this LMM's follows the image"
            raise ConfigError(
                f"LoRA group {group.name!r}: conv_lora needs one grid of patches, and {why}; use kind='lora'"
            )
        targets[group.name] = _find_linears(adapter, group)
        if unread := [name for name in targets[group.name] if ".base_layer" in name and ".lora_" not in name]:
            raise ConfigError(
                f"LoRA group {group.name!r} reaches {unread[0]}, in whose place a part of `lmm.parts` computes: it "
                "would never be read, or no longer be the model's own. Leave the group out, or the part"
            )
    for group in groups:
        inject(
            adapter.model,
            group.name,
            targets[group.name],
            r=group.r,
            alpha=group.alpha,
            dropout=group.dropout,
        )
        if group.kind == "conv_lora":
            _add_experts(adapter, group, targets[group.name])
    for name, parameter in adapter.model.named_parameters():
        parameter.requires_grad_(lora_group_of(name) is not None or is_added(name))
    adapter.lora_groups = {**adapter.lora_groups, **{group.name: group for group in groups}}
    adapter.frozen = adapter.trains_base = False
    return {name: tuple(found) for name, found in targets.items()}


def inject(
    module: nn.Module, name: str, targets: Sequence[str], *, r: int, alpha: float, dropout: float
) -> None:
    """Puts PEFT's layers around these linears and convolutions; the groups of a layer add up.

    PEFT's classes are built here, not by its injection: that one asks every optional kernel package it finds on the
    way (a broken bitsandbytes stops it), and rewrites ``requires_grad`` of the whole module.

    Args:
        module: Holds the targets; changed in place.
        name: Of the group, PEFT's adapter name.
        targets: Names of linears and convolutions in ``module``.
        r: Rank.
        alpha: Scale times rank.
        dropout: Probability, on the input of the low-rank path.

    Raises:
        ConfigError: A number cannot be used.
    """
    _check_numbers(f"LoRA group {name!r}", r, alpha, dropout)
    config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout)
    for target in targets:
        layer = module.get_submodule(target)
        if isinstance(layer, LoraLayer):
            layer.update_layer(name, r, lora_alpha=alpha, config=config)
        else:
            kind = lora.Conv2d if isinstance(layer, nn.Conv2d) else lora.Linear
            training = layer.training
            layer = kind(layer, name, config, r=r, lora_alpha=alpha).train(training)
            parent, _, leaf = target.rpartition(".")
            setattr(module.get_submodule(parent), leaf, layer)
        layer.set_adapter(list(layer.lora_A))
        # Float32 as in PEFT's own models: 16-bit weights would swallow an optimizer's small steps.
        layer.lora_A[name].float()
        layer.lora_B[name].float()


def compile_target(target: str) -> re.Pattern[str]:
    """A target's regular expression.

    Args:
        target: As in a config.

    Returns:
        The compiled expression; it has to match a whole name.

    Raises:
        ConfigError: It is none.
    """
    try:
        return re.compile(target)
    except re.error as error:
        raise ConfigError(f"LoRA `target` {target!r} is no regular expression: {error}") from error


def _find_linears(adapter: Adaptable, group: LoRAGroup) -> list[str]:
    """Names of the linears a group's target means, within ``adapter.model``."""
    if group.part not in adapter.facts.parts:
        raise ConfigError(
            f"LoRA group {group.name!r}: the LMM has no part {group.part!r}{suggest(group.part, adapter.facts.parts)}"
        )
    linears = _linears(adapter, group.part)
    wanted = group.target
    if not isinstance(wanted, str):
        meant = {target: [name for name in linears if f".{name}".endswith(f".{target}")] for target in wanted}
        unmatched = [target for target, names in meant.items() if not names]
        found = [] if unmatched else [name for name in linears if any(name in m for m in meant.values())]
        wanted = unmatched[0] if unmatched else ""
    elif wanted in LEAVES:
        presets = adapter.facts.lora_targets.get(group.part, LEAVES)
        leaves = presets.get(wanted, ())
        found = [name for name in linears if leaves is None or name.rpartition(".")[2] in leaves]
    else:
        pattern = compile_target(wanted)
        found = [name for name in linears if pattern.fullmatch(name)]
    if not found:
        known = dict.fromkeys([*LEAVES, *(name.rpartition(".")[2] for name in linears)])
        raise ConfigError(
            f"LoRA group {group.name!r}: `target` {wanted!r} matches no linear of part {group.part!r} "
            f"(names there look like {next(iter(linears)) if linears else 'nothing: it has no linear'!r})"
            f"{suggest(wanted, known)}"
        )
    return [linears[name] for name in found]


def _linears(adapter: Adaptable, part: str) -> dict[str, str]:
    """Linears of a part: by name within the part their name within ``adapter.model``."""
    adapted = lora_layers(adapter.model)
    owners = {path: name for name, paths in adapter.facts.parts.items() for path in paths}
    # Where a part is inside another, the longer path counts.
    paths = sorted(owners, key=len, reverse=True)
    found = {}
    for name, child in adapter.model.named_modules():
        path = next((path for path in paths if f"{name}.".startswith(f"{path}.")), None)
        if path is None or owners[path] != part:
            continue
        inside = any(name.startswith(f"{layer}.") for layer in adapted)
        if name in adapted or (isinstance(child, nn.Linear) and not inside):
            within = name.removeprefix(path).removeprefix(".") or name.rpartition(".")[2]
            # Modules of two pieces of a part may be called alike.
            found[name if within in found else within] = name
    return found


def _add_experts(adapter: Adaptable, group: LoRAGroup, targets: Sequence[str]) -> None:
    grid = adapter.facts.vision.grid
    assert grid is not None  # add_lora refuses conv_lora without one
    for target in targets:
        layer = adapter.model.get_submodule(target)
        assert isinstance(layer, LoraLayer)
        layer.lora_A[group.name] = ConvLoRADown(
            layer.lora_A[group.name],
            grid,
            num_experts=group.num_experts,
            top_k=group.top_k,
        )


def _check_numbers(where: str, r: int, alpha: float, dropout: float) -> None:
    if not isinstance(r, int) or r < 1:
        raise ConfigError(f"{where}: `r` is {r!r}; a positive integer is needed")
    if not alpha > 0:
        raise ConfigError(f"{where}: `alpha` is {alpha!r}; it must be positive")
    if not 0 <= dropout < 1:
        raise ConfigError(f"{where}: `dropout` is {dropout!r}; it must be in [0, 1)")
